//! Private servers for tests: PostgreSQL here, Redis in [`redis`], from the binaries that Debian's packages `postgresql`
//! and `redis-server` install.
//!
//! One cluster a test process, reached over a socket in a folder of its own; one database a test. A small shell
//! watches over it: when the test process ends, however that happens, its end of a pipe closes, and the shell stops
//! the database and removes the folder. Nothing here is for production: databases do not flush to the disk unless
//! asked to.

mod redis;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection};
use tokio::sync::OnceCell;

pub use redis::RedisServer;

use crate::{PostgresOptions, PostgresStore};

/// How long a cluster may take to start.
const STARTED_WITHIN: Duration = Duration::from_secs(30);

/// The database that others are copied from, with this build's schema.
const TEMPLATE: &str = "migrated";

/// A running PostgreSQL.
pub struct Cluster {
    folder: PathBuf,
    databases: AtomicU32,
    /// The shell that watches over the server, which runs while this shell's standard input is open.
    watcher: Child,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.watcher.stdin.take());
        // The shell stops the server and removes the folder.
        let _ = self.watcher.wait();
    }
}

/// A database of a cluster, with this build's schema and a clock that can be moved.
pub struct Database {
    pub url: String,
    options: PgConnectOptions,
}

impl Cluster {
    /// The cluster of this test process, started at the first call. `None`, and a loud word, when PostgreSQL is not
    /// installed; with `CI=true` in the environment that is a failure instead.
    pub async fn shared() -> Option<&'static Self> {
        static SHARED: OnceCell<Option<Cluster>> = OnceCell::const_new();
        SHARED.get_or_init(async || Self::start(false).await).await.as_ref()
    }

    /// A cluster of its own, which flushes to the disk if it is to be `durable`. Stops when it is dropped.
    pub async fn start(durable: bool) -> Option<Self> {
        let Some(binaries) = binaries() else {
            let missing = "PostgreSQL is not installed (package postgresql): its tests are SKIPPED";
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{missing}, which CI does not accept");
            eprintln!("{missing}");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("agent-service-pg-").tempdir().expect("a temporary folder");
        let run = match somebody_harmless() {
            Some((user, group)) => {
                chown(folder.path(), Some(user), Some(group)).expect("root can give a folder away");
                let [user, group] = [user.to_string(), group.to_string()];
                ["setpriv", "--reuid", &user, "--regid", &group, "--clear-groups", "--"].map(str::to_owned).into()
            }
            None => Vec::new(),
        };
        let folder = folder.keep();
        let data = folder.join("data");
        let initdb = command(&run, &binaries.join("initdb"))
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"])
            .arg("--pgdata")
            .arg(&data)
            .current_dir(&folder)
            .output()
            .expect("initdb can be run");
        assert!(initdb.status.success(), "initdb failed: {}", String::from_utf8_lossy(&initdb.stderr));

        // $1 is the server, $2 its data, $3 the folder, $4 whether to flush.
        let watch = "trap '' INT; start() { \"$1\" -D \"$2\" -k \"$3\" -c listen_addresses= -c fsync=$4 \
            -c max_connections=300 -c shared_buffers=64MB -c full_page_writes=$4 >>\"$3/log\" 2>&1 </dev/null & \
            server=$!; }; start \"$@\"; while read -r order; do case $order in start) start \"$@\";; \
            stop) kill -INT $server; wait $server;; esac; done; kill -QUIT $server; wait $server; rm -rf \"$2\" \"$3\"/* \"$3\"/.s.*; rmdir \"$3\"";
        let watcher = command(&run, Path::new("/bin/sh"))
            .args(["-c", watch, "watch"])
            .arg(binaries.join("postgres"))
            .args([&data, &folder])
            .arg(if durable { "on" } else { "off" })
            .current_dir(&folder)
            .stdin(Stdio::piped())
            .spawn()
            .expect("the server can be started");
        let cluster = Self { folder, databases: AtomicU32::new(0), watcher };
        cluster.await_start().await;
        cluster.execute("postgres", &format!("CREATE DATABASE {TEMPLATE}")).await;
        let store =
            PostgresStore::new(&cluster.database_named(TEMPLATE).store_options()).expect("the address is right");
        store.migrate().await.expect("an empty database can be migrated");
        store.close().await;
        Some(cluster)
    }

    /// A new, empty database.
    pub async fn database(&self) -> Database {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.execute("postgres", &format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE}")).await;
        self.database_named(&name)
    }

    /// A new, empty database without any schema.
    pub async fn bare_database(&self) -> Database {
        let name = format!("bare_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.execute("postgres", &format!("CREATE DATABASE {name}")).await;
        self.database_named(&name)
    }

    fn database_named(&self, name: &str) -> Database {
        Database::at(&format!("postgres://postgres@localhost/{name}?host={}", self.folder.display()))
    }

    /// Stops the server, as an operator who restarts it: transactions are rolled back, connections end.
    pub async fn stop(&self) {
        self.order("stop");
        while self.answers().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts the server that was stopped.
    pub async fn resume(&self) {
        self.order("start");
        self.await_start().await;
    }

    fn order(&self, order: &str) {
        let mut watcher = self.watcher.stdin.as_ref().expect("the watcher listens while the cluster lives");
        watcher.write_all(format!("{order}\n").as_bytes()).expect("the watcher lives");
    }

    async fn answers(&self) -> bool {
        self.database_named("postgres").options.connect().await.is_ok()
    }

    async fn await_start(&self) {
        let started = async {
            while !self.answers().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(STARTED_WITHIN, started).await.is_err() {
            let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            panic!("PostgreSQL did not start within {STARTED_WITHIN:?}: {log}");
        }
    }

    async fn execute(&self, database: &str, sql: &str) {
        self.database_named(database).execute(sql).await;
    }
}

impl Database {
    /// The database at this address.
    pub fn at(url: &str) -> Self {
        let options = url.parse::<PgConnectOptions>().expect("the address is right").disable_statement_logging();
        Self { url: url.to_owned(), options }
    }

    /// Waits until at most one replica holds its lock: the database takes a moment to notice a closed connection.
    pub async fn await_no_other_locks(&self) {
        let mut connection = self.connect().await;
        let held = "SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory' AND granted \
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        while sqlx::query_scalar::<_, i64>(held).fetch_one(&mut connection).await.expect("the statement is right") > 1 {
            tokio::task::yield_now().await;
        }
    }

    /// Waits until some statement waits for a lock that another transaction holds.
    pub async fn await_a_waiting_statement(&self) {
        let mut connection = self.connect().await;
        let waiting = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() \
            AND wait_event_type = 'Lock'";
        while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut connection).await.expect("the statement is right")
            == 0
        {
            tokio::task::yield_now().await;
        }
    }

    /// How a store reaches this database.
    pub fn store_options(&self) -> PostgresOptions {
        PostgresOptions { url: self.url.clone(), direct_url: None, connections_max: 8, blobs: None }
    }

    /// Runs statements as the database's owner.
    pub async fn execute(&self, sql: &str) {
        let mut connection = self.connect().await;
        let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error}"));
        connection.close().await.expect("nothing is open");
    }

    pub async fn connect(&self) -> PgConnection {
        self.options.connect().await.expect("the database is there")
    }

    /// Puts a clock that can be moved before the database's own. Call it before any store connects.
    pub async fn take_the_clock(&self) {
        let (_, name) = self.url.split_once("localhost/").expect("the address has a database");
        let (name, _) = name.split_once('?').expect("the address has a folder");
        self.execute(&format!(
            "CREATE SCHEMA testing; \
             CREATE TABLE testing.clock (ahead interval NOT NULL); \
             INSERT INTO testing.clock VALUES ('0'); \
             CREATE FUNCTION testing.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE sql \
                 AS 'SELECT pg_catalog.clock_timestamp() + ahead FROM testing.clock'; \
             ALTER DATABASE {name} SET search_path = testing, pg_catalog, public"
        ))
        .await;
    }

    /// Moves the clock that was taken.
    pub async fn advance(&self, millis: i64) {
        self.execute(&format!("UPDATE testing.clock SET ahead = ahead + make_interval(secs => {millis} / 1000.0)"))
            .await;
    }
}

/// The folder of the newest installed server's programs.
fn binaries() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let folders = versions.filter_map(|version| Some(version.ok()?.path().join("bin")));
    let mut installed: Vec<(u32, PathBuf)> = folders
        .filter(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())
        .filter_map(|folder| Some((folder.parent()?.file_name()?.to_str()?.parse().ok()?, folder)))
        .collect();
    installed.sort();
    installed.pop().map(|(_, folder)| folder)
}

/// PostgreSQL refuses to run as root: the user and group to run it as instead. `None` when we are not root.
fn somebody_harmless() -> Option<(u32, u32)> {
    let id = |arguments: &[&str]| {
        let output = Command::new("id").args(arguments).output().ok().filter(|output| output.status.success())?;
        String::from_utf8_lossy(&output.stdout).trim().parse::<u32>().ok()
    };
    if id(&["-u"]) != Some(0) {
        return None;
    }
    let users = ["postgres", "nobody"];
    Some(users.iter().find_map(|user| id(&["-u", user]).zip(id(&["-g", user]))).expect("root can become nobody"))
}

fn command(run: &[String], program: &Path) -> Command {
    let mut command = match run {
        [] => Command::new(program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    };
    command.env_remove("PGDATA").env("LC_ALL", "C");
    command
}
