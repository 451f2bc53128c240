//! What stands around a sandbox under attack, and how to see from there that an attack succeeded.
//!
//! Beside the session there are: a data folder with secrets, as the server has one; the *victim*, a process of the
//! same user with a secret in its environment, on its standard input and as its folder; sockets of every kind that
//! nobody may reach; and a *bystander*, another session with a secret file and a process of its own.
//! [`Scene::harm`] looks at all of them and names what is not as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::time::Duration;

use serde_json::json;
use worker::egress::{Egress, NetworkConfig, Policy, SessionEgress};
use worker::sandbox::Sandbox;
use worker::{Confinement, Limits};

use super::BREACH;
use crate::support::{Place, SECRET, SESSION, Tools};

const BYSTANDER: &str = "sesn_other";
/// What sessions are given lies here, beside their workspaces.
const UPLOADS: &str = ".uploads";
const GIVEN: &str = "given\n";
/// Where a process outside would find a file that an attempt leaves behind in a shared folder.
const SHARED_FOLDERS: &[&str] = &["/tmp", "/var/tmp", "/dev/shm", "/run", "/root", "/etc", "/usr/local/bin"];

/// Small enough to be reached in a moment, large enough for two shells and perl.
fn limits() -> Limits {
    Limits {
        processes_max: 64,
        memory_bytes_max: 256 << 20,
        process_memory_bytes_max: 192 << 20,
        file_bytes_max: 8 << 20,
        open_files_max: 256,
        cpu_seconds_max: 60,
        workspace_bytes_max: 48 << 20,
        workspace_files_max: 2_000,
    }
}

pub(super) struct Scene {
    pub(super) place: Place,
    /// In the environment or the name of every process of the attempt.
    pub(super) token: String,
    pub(super) tools: Option<Tools>,
    /// What the calls of the last attempt answered, for who has to find out why it failed.
    pub(super) answers: Vec<String>,
    /// The session's way out, as a worker opens it: to everything that the operator has not listed.
    egress: Option<SessionEgress>,
    bystander: Tools,
    bystander_pid: i32,
    victim: Child,
    /// A secret on a descriptor that every process inherits that is started here.
    _leak: File,
    sockets: Sockets,
    /// A port on which nobody listens.
    free_port: u16,
    /// A key of System V objects that nobody uses.
    key: u32,
    /// A text in the memory of the worker, which is this process. Others may write there, as the kernel sees it.
    memory: Box<[AtomicU8; SECRET.len()]>,
    before: Outside,
}

impl Scene {
    /// `number` tells scenes of one run apart.
    pub(super) async fn new(confinement: Confinement, number: usize) -> Self {
        let place = Place::at(confinement).with_limits(limits());
        let data = place.data();
        furnish(&data);
        let token = format!("attack{}x{number}", std::process::id());
        let stdin = File::open(data.join("secret")).unwrap();
        let victim = Command::new("sleep")
            .arg("100000")
            .env_clear()
            .env("VICTIM_KEY", SECRET)
            .current_dir(&data)
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let leak = File::open(data.join("secret")).unwrap();
        rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
        let sockets = Sockets::open(&data, &token);
        let free_port = free_port();
        give(&place.config.workspaces_dir, BYSTANDER, SECRET);
        let mut bystander = Tools(Sandbox::start(&place.config, BYSTANDER).await.unwrap());
        let started = format!("echo {SECRET} >secret; export BYSTANDER={token}; sleep 100000 & echo started");
        assert_eq!(bystander.bash(&started).await, "started");
        let bystander_pid = sleeping_with(&format!("BYSTANDER={token}")).await;
        let secret: [u8; SECRET.len()] = SECRET.as_bytes().try_into().unwrap();
        let memory = Box::new(secret.map(AtomicU8::new));
        give(&place.config.workspaces_dir, SESSION, GIVEN);
        let mut tools = place.sandbox().await;
        let egress = Some(open(&mut tools));
        let tools = Some(tools);
        let key = 0x5e00_0000 + (std::process::id() % 0xff_ff) * 0x80 + u32::try_from(number % 0x80).unwrap();
        let mut scene = Self {
            bystander_pid,
            place,
            token,
            tools,
            answers: Vec::new(),
            egress,
            bystander,
            victim,
            _leak: leak,
            sockets,
            free_port,
            key,
            memory,
            before: Outside::default(),
        };
        scene.before = scene.look();
        scene
    }

    /// Puts the scene's values in place of their names.
    pub(super) fn fill(&self, template: &str) -> String {
        let data = self.place.data();
        let head = self.tools.as_ref().map_or(1, |tools| tools.0.process_id());
        let (supervisor, helper) = inner_processes(head, self.place.has_namespaces());
        let values: &[(&str, String)] = &[
            ("secret", data.join("secret").display().to_string()),
            ("data", data.display().to_string()),
            ("workspaces", self.place.config.workspaces_dir.display().to_string()),
            ("other", self.place.config.workspaces_dir.join(BYSTANDER).display().to_string()),
            ("uploads", self.place.uploads(SESSION).display().to_string()),
            ("other_uploads", self.place.uploads(BYSTANDER).display().to_string()),
            ("victim", self.victim.id().to_string()),
            ("worker", std::process::id().to_string()),
            ("supervisor", supervisor.to_string()),
            ("helper", helper.to_string()),
            ("bystander", self.bystander_pid.to_string()),
            ("memory", (self.memory.as_ptr() as usize).to_string()),
            ("tcp", self.sockets.tcp_port.to_string()),
            ("udp", self.sockets.udp_port.to_string()),
            ("free_port", self.free_port.to_string()),
            ("key", self.key.to_string()),
            ("token", self.token.clone()),
            ("breach", BREACH.to_owned()),
        ];
        values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(&format!("%{name}%"), value))
    }

    /// What an attempt has done so far, seen from outside; empty if nothing.
    pub(super) async fn harm(&mut self) -> Vec<String> {
        let mut harm = self.look().differences(&self.before);
        harm.extend(self.sockets.reached());
        if TcpStream::connect(("127.0.0.1", self.free_port)).is_ok() {
            harm.push("a port of the host is listened on".to_owned());
        }
        let bound = SocketAddr::from_abstract_name(format!("{}.bound", self.token)).unwrap();
        if UnixStream::connect_addr(&bound).is_ok() {
            harm.push("an abstract name of the host is listened on".to_owned());
        }
        if let Some(supervisor) = self.tools.as_ref().map(|tools| tools.0.process_id())
            && !is_running(supervisor)
        {
            harm.push("the supervisor does not run any more".to_owned());
        }
        let supervisor = self.bystander.0.process_id();
        if !is_running(supervisor) {
            harm.push("another session's supervisor does not run any more".to_owned());
        } else if self.bystander.outcome("bash", json!({"command": "echo here"})).await.as_text() != Some("here") {
            harm.push("another session's shell does not answer as it should".to_owned());
        }
        harm
    }

    /// Processes of the attempt that are still there.
    pub(super) fn survivors(&self) -> Vec<i32> {
        processes_with(&format!("ATTACK={}", self.token))
    }

    /// Starts the session's sandbox if there is none; says why that failed, though it was possible in the end.
    pub(super) async fn start(&mut self) -> Option<String> {
        if self.tools.is_some() {
            return None;
        }
        if give(&self.place.config.workspaces_dir, SESSION, GIVEN) {
            // They went with the workspace, as they should.
            self.before = self.look();
        }
        match Sandbox::start(&self.place.config, SESSION).await {
            Ok(sandbox) => {
                self.hold(Tools(sandbox));
                None
            }
            Err(error) => {
                self.clear_workspace();
                let tools = self.place.sandbox().await;
                self.hold(tools);
                Some(format!("the next sandbox does not start: {error}"))
            }
        }
    }

    fn hold(&mut self, mut tools: Tools) {
        self.egress = Some(open(&mut tools));
        self.tools = Some(tools);
    }

    /// Where the session's workspace lies, for attempts that start outside.
    pub(super) fn workspace(&self) -> PathBuf {
        self.place.config.workspaces_dir.join(SESSION)
    }

    /// Makes the workspace as it is at the start of a session, whatever an attempt made of it.
    pub(super) fn clear_workspace(&self) {
        let workspace = self.workspace();
        let _ = fs::set_permissions(&workspace, fs::Permissions::from_mode(0o700));
        for entry in walkdir::WalkDir::new(&workspace).into_iter().flatten().filter(|entry| entry.file_type().is_dir())
        {
            let _ = fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o700));
        }
        for entry in fs::read_dir(&workspace).into_iter().flatten().flatten() {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let _ = if is_folder { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        }
        fs::create_dir_all(workspace.join(".agent/tmp")).unwrap();
    }

    fn look(&self) -> Outside {
        let mut outside = Outside::default();
        outside.folder(&self.place.data());
        outside.folder(&self.place.config.workspaces_dir.join(BYSTANDER));
        outside.folder(&self.place.config.workspaces_dir.join(UPLOADS));
        outside.process("the victim", self.victim.id());
        outside.process("a process of another session", self.bystander_pid.unsigned_abs());
        outside.privileged_files(&self.place.workspace());
        outside.shared(&self.token, self.key);
        let memory: Vec<u8> = self.memory.iter().map(|byte| byte.load(Ordering::SeqCst)).collect();
        outside.note("the worker's memory", String::from_utf8_lossy(&memory));
        outside
    }

    /// Takes away what an attempt left in places that outlive the scene.
    pub(super) fn sweep(&self) {
        for pid in self.survivors() {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        for folder in SHARED_FOLDERS {
            let _ = fs::remove_file(Path::new(folder).join(&self.token));
        }
        let key = format!("0x{:08x}", self.key);
        for option in ["-M", "-Q", "-S"] {
            let _ = Command::new("ipcrm").args([option, &key]).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.victim.kill();
        let _ = self.victim.wait();
        self.sweep();
        // An attempt may have made folders that cannot be removed as they are.
        let _ = fs::set_permissions(self.place.data(), fs::Permissions::from_mode(0o700));
    }
}

/// The data folder of a server: a secret as content, extended attribute, target of a link, and output of a program.
fn furnish(data: &Path) {
    fs::create_dir(data.join("empty")).unwrap();
    std::os::unix::fs::symlink(SECRET, data.join("link")).unwrap();
    fs::write(data.join("program"), format!("#!/bin/sh\necho {SECRET}\n")).unwrap();
    fs::set_permissions(data.join("program"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy("/bin/echo", data.join("echo")).unwrap();
    // Not every file system has them; then there is nothing to steal.
    let _ =
        rustix::fs::setxattr(data.join("secret"), "user.secret", SECRET.as_bytes(), rustix::fs::XattrFlags::empty());
}

/// Gives a session a file, as a worker does, unless it has one; whether it did.
fn give(workspaces: &Path, session_id: &str, content: &str) -> bool {
    let folder = workspaces.join(UPLOADS).join(session_id);
    if folder.join("in").exists() {
        return false;
    }
    fs::create_dir_all(folder.join("in")).unwrap();
    fs::write(folder.join("in/given"), content).unwrap();
    fs::set_permissions(folder.join("in/given"), fs::Permissions::from_mode(0o444)).unwrap();
    true
}

fn open(tools: &mut Tools) -> SessionEgress {
    let listener = tools.0.take_proxy().unwrap();
    Egress::new(NetworkConfig::default()).serve(SESSION, Policy::Unrestricted, listener).unwrap()
}

/// A port that nobody is given who asks for any, as other tests do all the time.
fn free_port() -> u16 {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let first: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
    loop {
        let port = first - 1 - TAKEN.fetch_add(1, Ordering::SeqCst);
        assert!(port > 1024, "no port below {first} is free");
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}

/// The supervisor and the file helper of the sandbox with this head, by the ids that they have inside.
fn inner_processes(head: u32, has_namespaces: bool) -> (i32, i32) {
    // A fork of the supervisor has its command line; bash, which it also forks, has one of its own.
    let copies = |parent: u32| -> Vec<u32> {
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        let is_copy = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|it| it == b"__sandbox")
        };
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(is_copy).collect()
    };
    let inner = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        ids.split_whitespace().last().and_then(|pid| pid.parse().ok()).unwrap_or(i32::MAX)
    };
    let supervisor = if has_namespaces { copies(head).first().copied().unwrap_or(head) } else { head };
    (inner(supervisor), copies(supervisor).first().map_or(i32::MAX, |helper| inner(*helper)))
}

fn processes() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Whether a process exists, is not stopped and not merely waiting to be reaped.
fn is_running(pid: u32) -> bool {
    state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X' | 'T' | 't'))
}

fn state(pid: u32) -> Option<char> {
    fs::read_to_string(format!("/proc/{pid}/stat")).ok()?.rsplit(')').next()?.trim_start().chars().next()
}

/// Living processes that have `mark` among their environment, arguments or name.
fn processes_with(mark: &str) -> Vec<i32> {
    processes().filter(|pid| is_marked(*pid, mark)).collect()
}

/// A process shows neither environment nor arguments while it executes a program: it is looked at until it has done so.
fn is_marked(pid: i32, mark: &str) -> bool {
    const LOOKS: u32 = 1000;
    let folder = PathBuf::from(format!("/proc/{pid}"));
    for _ in 0..LOOKS {
        let texts = ["environ", "cmdline"].map(|name| fs::read(folder.join(name)).unwrap_or_default());
        if state(pid.unsigned_abs()).is_none_or(|state| matches!(state, 'Z' | 'X')) {
            return false;
        }
        if texts.iter().any(|text| text.windows(mark.len()).any(|window| window == mark.as_bytes())) {
            return true;
        }
        if texts.iter().any(|text| !text.is_empty()) || is_kernel_thread(&folder) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

/// Kernel threads have no memory of their own.
fn is_kernel_thread(folder: &Path) -> bool {
    fs::read_to_string(folder.join("statm")).is_ok_and(|pages| pages.starts_with("0 "))
}

/// The `sleep` that a shell was told to start with `mark` in its environment, once it is there.
async fn sleeping_with(mark: &str) -> i32 {
    let is_sleep = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n");
    for _ in 0..1000 {
        if let Some(pid) = processes_with(mark).into_iter().find(is_sleep) {
            return pid;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("no process has {mark} in its environment");
}

/// Everything outside that an attempt must leave as it is, by name.
#[derive(Default)]
struct Outside(BTreeMap<String, String>);

impl Outside {
    fn note(&mut self, what: impl Into<String>, state: impl Into<String>) {
        self.0.insert(what.into(), state.into());
    }

    fn differences(&self, before: &Self) -> Vec<String> {
        let names: BTreeSet<&String> = self.0.keys().chain(before.0.keys()).collect();
        let changed = names.into_iter().filter(|name| self.0.get(*name) != before.0.get(*name));
        changed.map(|name| format!("{name} was {:?} and is {:?}", before.0.get(name), self.0.get(name))).collect()
    }

    fn folder(&mut self, folder: &Path) {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        for entry in walkdir::WalkDir::new(folder).sort_by_file_name() {
            let Ok(entry) = entry else {
                self.note(format!("{name}, as a whole"), "unreadable");
                continue;
            };
            // A shell of the other session writes there; its own folder is nobody's business.
            if entry.path().components().any(|part| part.as_os_str() == ".agent") {
                continue;
            }
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            let content = if metadata.is_file() && metadata.len() < 4096 {
                fs::read_to_string(entry.path()).unwrap_or_default()
            } else {
                String::new()
            };
            let mut names = vec![0; 1024];
            let length = rustix::fs::llistxattr(entry.path(), names.as_mut_slice()).unwrap_or(0);
            let below = entry.path().strip_prefix(folder).unwrap().display().to_string();
            self.note(
                format!("{name}/{below}"),
                format!(
                    "{:o} {}:{} links {} bytes {} at {}.{} {content:?} {:?}",
                    metadata.mode(),
                    metadata.uid(),
                    metadata.gid(),
                    metadata.nlink(),
                    metadata.size(),
                    metadata.mtime(),
                    metadata.mtime_nsec(),
                    String::from_utf8_lossy(&names[..length]),
                ),
            );
        }
    }

    fn process(&mut self, name: &str, pid: u32) {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let stat = read("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or_default();
        // Fields 5, 6, 19, 40 and 41 of proc(5): group, session, nice, real-time priority, policy.
        let scheduling = [5, 6, 19, 40, 41].map(field).join(" ");
        let is_running = is_running(pid);
        self.note(format!("{name}: running"), is_running.to_string());
        self.note(format!("{name}: scheduling"), scheduling);
        self.note(format!("{name}: limits"), read("limits"));
        self.note(format!("{name}: badness"), read("oom_score_adj"));
        self.note(format!("{name}: timer slack"), read("timerslack_ns"));
        let status = read("status");
        let processors = status.lines().find(|line| line.starts_with("Cpus_allowed_list")).unwrap_or_default();
        self.note(format!("{name}: processors"), processors);
    }

    /// A program in the workspace that would run as the worker's user for whoever starts it.
    fn privileged_files(&mut self, workspace: &Path) {
        for entry in walkdir::WalkDir::new(workspace).into_iter().flatten() {
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            let is_device = !metadata.is_file() && !metadata.is_dir() && !metadata.is_symlink();
            let is_fifo = std::os::unix::fs::FileTypeExt::is_fifo(&metadata.file_type());
            if metadata.mode() & 0o6000 != 0 && !metadata.is_symlink() {
                self.note(format!("the set-id bits of {}", entry.path().display()), format!("{:o}", metadata.mode()));
            }
            if is_device && !is_fifo {
                self.note(format!("the special file {}", entry.path().display()), format!("{:o}", metadata.mode()));
            }
        }
    }

    /// What the whole machine shares.
    fn shared(&mut self, token: &str, key: u32) {
        for folder in SHARED_FOLDERS {
            if Path::new(folder).join(token).symlink_metadata().is_ok() {
                self.note(format!("{folder}/{token}"), "there");
            }
        }
        for table in ["shm", "msg", "sem"] {
            let text = fs::read_to_string(format!("/proc/sysvipc/{table}")).unwrap_or_default();
            let keys = text.lines().filter_map(|line| line.split_whitespace().next()?.parse::<i64>().ok());
            if keys.into_iter().any(|found| found == i64::from(key)) {
                self.note(format!("System V {table} under the attack's key"), "there");
            }
        }
        for name in ["hostname", "domainname", "core_pattern", "randomize_va_space"] {
            self.note(name, fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default());
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = mounts.lines().filter(|line| line.contains(token)).count();
        self.note("mounts of the attack", own.to_string());
    }
}

/// Sockets of the host that nobody in a sandbox may reach.
struct Sockets {
    tcp: Vec<TcpListener>,
    tcp_port: u16,
    udp: Vec<UdpSocket>,
    udp_port: u16,
    streams: Vec<UnixListener>,
    datagrams: Vec<UnixDatagram>,
}

impl Sockets {
    /// By path they are `stream.sock` and `datagram.sock` in the data folder, abstract ones are named
    /// `<token>.stream` and `<token>.datagram`.
    fn open(data: &Path, token: &str) -> Self {
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp_port = v4.local_addr().unwrap().port();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let udp_port = udp.local_addr().unwrap().port();
        // A machine may have no IPv6, or somebody may have the port there.
        let tcp: Vec<_> = [Some(v4), TcpListener::bind(("::1", tcp_port)).ok()].into_iter().flatten().collect();
        let udp: Vec<_> = [Some(udp), UdpSocket::bind(("::1", udp_port)).ok()].into_iter().flatten().collect();
        let name = |kind: &str| SocketAddr::from_abstract_name(format!("{token}.{kind}")).unwrap();
        let streams = vec![
            UnixListener::bind(data.join("stream.sock")).unwrap(),
            UnixListener::bind_addr(&name("stream")).unwrap(),
        ];
        let datagrams = vec![
            UnixDatagram::bind(data.join("datagram.sock")).unwrap(),
            UnixDatagram::bind_addr(&name("datagram")).unwrap(),
        ];
        tcp.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        udp.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        streams.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        datagrams.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        Self { tcp, tcp_port, udp, udp_port, streams, datagrams }
    }

    fn reached(&self) -> Vec<String> {
        let mut reached = Vec::new();
        let mut note = |what: &str, result: std::io::Result<()>| match result {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => reached.push(format!("{what} of the host was reached")),
        };
        self.tcp.iter().for_each(|socket| note("a TCP port", socket.accept().map(drop)));
        self.udp.iter().for_each(|socket| note("a UDP port", socket.recv(&mut [0; 64]).map(drop)));
        self.streams.iter().for_each(|socket| note("a Unix stream socket", socket.accept().map(drop)));
        self.datagrams.iter().for_each(|socket| note("a Unix datagram socket", socket.recv(&mut [0; 64]).map(drop)));
        reached
    }
}
