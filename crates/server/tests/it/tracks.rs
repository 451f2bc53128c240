//! The split of sessions between two releases, beside that of a real nginx.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use engine::port::{CanaryWeight, Track};
use session::id::{Identifier as _, SessionId};

/// The weights that are compared, in hundredths of a percent.
const WEIGHTS: [u16; 7] = [1, 1_000, 2_500, 3_333, 5_000, 7_500, 10_000];

/// An nginx that tells, for the session in the path, its track under each weight. Killed when it is dropped.
struct Nginx {
    child: Child,
    url: String,
}

impl Nginx {
    fn start(folder: &Path) -> Option<Self> {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let mut splits = String::new();
        for weight in WEIGHTS {
            let (percent, rest) = (weight / 100, weight % 100);
            splits += &format!("split_clients $session $t{weight} {{ {percent}.{rest:02}% canary; * stable; }}\n");
        }
        let answers = WEIGHTS.map(|weight| format!("$t{weight}")).join(" ");
        let folder_name = folder.display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {folder_name}/{kind};\n"))
            .concat();
        let config = format!(
            "daemon off; master_process off; pid {folder_name}/pid; error_log stderr;
            events {{ worker_connections 16; }}
            http {{
                access_log off; keepalive_requests 10000; {temporary}
                map $uri $session {{ ~^/v1/sessions/(?<id>[^/]+)/ $id; default $request_id; }}
                {splits}
                server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"{answers}\"; }} }}
            }}"
        );
        std::fs::write(folder.join("nginx.conf"), config).unwrap();
        let spawned = Command::new("nginx")
            .arg("-p")
            .arg(folder)
            .args(["-c", "nginx.conf", "-e", "stderr"])
            .stdin(Stdio::null())
            .spawn();
        match spawned {
            Ok(child) => Some(Self { child, url: format!("http://127.0.0.1:{port}") }),
            Err(_) if std::env::var_os("CI").is_none() => {
                eprintln!("nginx is not installed: its split is not compared");
                None
            }
            Err(error) => panic!("nginx: {error}"),
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn claims_and_nginx_split_sessions_alike() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut nginx) = Nginx::start(folder.path()) else { return };
    let client = reqwest::Client::new();
    while client.get(&nginx.url).send().await.is_err() {
        assert_eq!(nginx.child.try_wait().unwrap(), None, "nginx did not start");
    }
    let mut canarys = [0; WEIGHTS.len()];
    for number in 0..1_000_u128 {
        // Real ids, and then texts of every length up to that of one.
        let id = SessionId::from_bits(number.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
        let id = if number < 900 { id } else { SessionId::from(&id.as_str()[..1 + number as usize % 29]) };
        let url = format!("{}/v1/sessions/{id}/events", nginx.url);
        let told = client.get(url).send().await.unwrap().text().await.unwrap();
        let ours = WEIGHTS.map(|weight| Track::of(&id, CanaryWeight::from_hundredths(weight).unwrap()));
        assert_eq!(told, ours.map(Track::name).join(" "), "{id}");
        for (count, track) in canarys.iter_mut().zip(ours) {
            *count += usize::from(track == Track::Canary);
        }
    }
    assert!(canarys.is_sorted() && canarys[6] == 1_000 && canarys[1] > 50, "{canarys:?}");
}
