//! A proxy on this machine with names of the test's own, servers that record what reaches them, and a client that
//! sends bytes as they are.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use worker::egress::{Egress, HostPattern, NetworkConfig, Policy, Reason, Resolve, SessionEgress};

use crate::support::SESSION;

/// Nothing takes so long; what does has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Names and their answers, one look-up after another; the last one stays.
#[derive(Default)]
pub(crate) struct Names {
    answers: Mutex<BTreeMap<String, VecDeque<Vec<IpAddr>>>>,
    pub asked: Mutex<Vec<String>>,
}

impl Names {
    pub(crate) fn answer(&self, name: &str, answers: &[&[&str]]) {
        let answers = answers.iter().map(|answer| answer.iter().map(|address| address.parse().unwrap()).collect());
        self.answers.lock().unwrap().insert(name.to_owned(), answers.collect());
    }
}

/// A name that is looked up for ever.
pub(crate) const NAME_WITHOUT_END: &str = "without-end.test";

impl Resolve for Names {
    fn resolve(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        self.asked.lock().unwrap().push(name.clone());
        if name == NAME_WITHOUT_END {
            return std::future::pending().boxed();
        }
        let mut answers = self.answers.lock().unwrap();
        let answer = match answers.get_mut(&name) {
            None => Err(io::Error::other("no such name")),
            Some(answers) if answers.len() > 1 => Ok(answers.pop_front().unwrap()),
            Some(answers) => Ok(answers[0].clone()),
        };
        async move { answer }.boxed()
    }
}

pub(crate) struct Rig {
    pub names: Arc<Names>,
    pub proxy: SocketAddr,
    pub session: SessionEgress,
}

impl Rig {
    /// An unrestricted session; 127.0.0.1 is listed, and `server.test` has that address.
    pub(crate) fn new() -> Self {
        Self::with(Policy::Unrestricted, |_| {})
    }

    pub(crate) fn limited(allowed_hosts: &str) -> Self {
        let allowed_hosts = allowed_hosts.split_whitespace().map(HostPattern::new).collect();
        Self::with(Policy::Limited { allowed_hosts }, |_| {})
    }

    pub(crate) fn with(policy: Policy, change: impl FnOnce(&mut NetworkConfig)) -> Self {
        let allowed_addresses = vec!["127.0.0.1/32".parse().unwrap()];
        let mut config = NetworkConfig { allowed_addresses, ..NetworkConfig::default() };
        change(&mut config);
        let names = Arc::new(Names::default());
        names.answer("server.test", &[&["127.0.0.1"]]);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = listener.local_addr().unwrap();
        let egress = Egress::with_resolver(config, names.clone());
        let session = egress.serve(SESSION, policy, listener).unwrap();
        Self { names, proxy, session }
    }

    pub(crate) async fn connect(&self) -> Client {
        Client(TcpStream::connect(self.proxy).await.unwrap())
    }

    /// Sends these bytes over a connection of their own; yields one answer, and what comes through a tunnel.
    pub(crate) async fn say(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut client = self.connect().await;
        // A request that is too long is refused before its end is taken.
        let _ = client.0.write_all(bytes.as_ref()).await;
        let mut answer = client.answer().await;
        if answer.starts_with("HTTP/1.1 200 ") && !answer.contains("content-length") {
            client.0.shutdown().await.unwrap();
            answer += &client.rest().await;
        }
        answer
    }

    /// What was refused since the last time, by reason.
    pub(crate) fn refused(&self) -> Vec<(&'static str, u64)> {
        self.session.refusals().take().into_iter().map(|(reason, count)| (reason.name(), count)).collect()
    }

    /// Waits until something was refused, for what nobody is told.
    pub(crate) async fn until_refused(&self, reason: Reason) {
        let wait = async {
            loop {
                let taken = self.session.refusals().take();
                if taken.iter().any(|(taken, _)| *taken == reason) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        within(wait).await;
    }

    /// A client as programs have it.
    pub(crate) fn http(&self) -> reqwest::ClientBuilder {
        let proxy = reqwest::Proxy::all(format!("http://{}", self.proxy)).unwrap();
        reqwest::Client::builder().proxy(proxy).timeout(PATIENCE)
    }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it comes in time")
}

pub(crate) struct Client(pub TcpStream);

impl Client {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads until this text has come.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        let mut text = Vec::new();
        within(async {
            while !text.ends_with(end.as_bytes()) {
                let byte = self.0.read_u8().await;
                text.push(byte.unwrap_or_else(|error| panic!("{error} after {:?}", String::from_utf8_lossy(&text))));
            }
        })
        .await;
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Reads one answer, its body included if it says how long that is.
    pub(crate) async fn answer(&mut self) -> String {
        let mut text = Vec::new();
        within(async {
            while !is_whole(&text) {
                match self.0.read_u8().await {
                    Ok(byte) => text.push(byte),
                    Err(_) => break,
                }
            }
        })
        .await;
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Reads to the end; a reset is an end too.
    pub(crate) async fn rest(&mut self) -> String {
        let mut text = Vec::new();
        let _ = within(self.0.read_to_end(&mut text)).await;
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// A server that answers every connection with fixed bytes and hands out what it was sent.
pub(crate) struct Server {
    pub port: u16,
    requests: mpsc::UnboundedReceiver<String>,
}

impl Server {
    /// Answers once a whole request is in; what belongs to it is told by its framing alone.
    pub(crate) async fn new(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, requests) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let sender = sender.clone();
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !is_whole(&request) {
                        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                            break;
                        }
                    }
                    let _ = sender.send(String::from_utf8_lossy(&request).into_owned());
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        Self { port, requests }
    }

    /// The next request, as it came.
    pub(crate) async fn request(&mut self) -> String {
        within(self.requests.recv()).await.unwrap()
    }

    /// Asserts that nothing has reached the server.
    pub(crate) fn heard_nothing(&mut self) {
        assert_eq!(self.requests.try_recv().ok(), None);
    }
}

/// Whether a message has come to its end, by its own word.
fn is_whole(message: &[u8]) -> bool {
    let text = String::from_utf8_lossy(message).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    match length {
        Some(length) => body.len() >= length.trim().parse().unwrap(),
        None if head.contains("transfer-encoding: chunked") => body.ends_with("0\r\n\r\n"),
        None => true,
    }
}
