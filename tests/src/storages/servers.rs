//! Servers that keep objects: started on loopback or a socket, in a directory that goes with them.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use praas_runtime::swap::StorageUrl;
use tempfile::TempDir;

/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(60);
const PASSWORD: &str = "only for tests";
const BUCKET: &str = "praas";
const S3_ID: &str = "testing";
const S3_SECRET: &str = "0123456789abcdef";

/// A server that runs.
pub enum Server {
    /// Speaks Redis's protocol.
    Redis(RedisServer),
    /// Speaks S3.
    S3(S3Server),
}

impl Server {
    /// The URL of the storage on it.
    pub fn url(&self) -> StorageUrl {
        let (at, port) = ("127.0.0.1", self.address().port());
        self.url_at(&format!("{at}:{port}"))
    }

    /// The same as if the server were elsewhere.
    ///
    /// # Panics
    /// That is no address.
    pub fn url_at(&self, address: &str) -> StorageUrl {
        let url = match self {
            Self::Redis(server) => format!(
                "redis://{address}/1?prefix=a*b/&password_file={}",
                server.dir.path().join("password").display()
            ),
            Self::S3(server) => format!(
                "s3://{BUCKET}/some/prefix?endpoint=http://{address}&credentials={}",
                server.dir.path().join("credentials").display()
            ),
        };
        url.parse().expect("a URL")
    }

    /// The URL as if the server were elsewhere, without credentials, and these as variables of the
    /// environment.
    ///
    /// # Panics
    /// That is no address.
    pub fn url_bare(&self, address: &str) -> (StorageUrl, Vec<(&'static str, &'static str)>) {
        let (url, environment) = match self {
            Self::Redis(_) => (
                format!("redis://{address}/1?prefix=a*b/"),
                vec![("PRAAS_REDIS_PASSWORD", PASSWORD)],
            ),
            Self::S3(_) => (
                format!("s3://{BUCKET}/some/prefix?endpoint=http://{address}"),
                vec![
                    ("AWS_ACCESS_KEY_ID", S3_ID),
                    ("AWS_SECRET_ACCESS_KEY", S3_SECRET),
                ],
            ),
        };
        (url.parse().expect("a URL"), environment)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Redis(server) => server.address,
            Self::S3(server) => server.address,
        }
    }
}

/// `redis-server`, with a password, and durable.
pub struct RedisServer {
    address: SocketAddr,
    dir: TempDir,
    _child: Running,
}

/// `s3s-fs`, which checks signatures.
pub struct S3Server {
    address: SocketAddr,
    dir: TempDir,
    _child: Running,
}

/// A child that ends with us.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl RedisServer {
    /// Starts one.
    ///
    /// # Errors
    /// There is no such program.
    ///
    /// # Panics
    /// It does not answer.
    pub fn start() -> Result<Self, String> {
        let program = program_find("redis-server", &[])
            .ok_or("there is no redis-server: install the package of that name")?;
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("password"), format!("{PASSWORD}\n")).expect("a file");
        // The port may be somebody else's by the time that the server asks for it.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0")
                .and_then(|listener| listener.local_addr())
                .expect("a port")
                .port();
            // The password is not to be seen on a command line, not even this one.
            let config = format!(
                "port {port}\nbind 127.0.0.1\ndir {}\nsave \"\"\nappendonly yes\n\
                 requirepass \"{PASSWORD}\"\ndaemonize no\n",
                dir.path().display()
            );
            fs::write(dir.path().join("redis.conf"), config).expect("a file");
            let log = File::create(dir.path().join("log")).expect("a log");
            let child = Command::new(&program)
                .arg(dir.path().join("redis.conf"))
                .stdin(Stdio::null())
                .stdout(log)
                .stderr(Stdio::null())
                .spawn()
                .expect("redis-server");
            let mut child = Running(child);
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            if answers(&mut child.0, address) {
                return Ok(Self {
                    address,
                    dir,
                    _child: child,
                });
            }
        }
        panic!("redis-server does not start")
    }
}

impl S3Server {
    /// Starts one.
    ///
    /// # Errors
    /// There is no such program.
    ///
    /// # Panics
    /// It does not answer.
    pub fn start() -> Result<Self, String> {
        let program = program_find("s3s-fs", &[&target().join("storage-tools/bin")])
            .ok_or("there is no s3s-fs: `.ci/run storage` installs it into target/")?;
        let dir = tempfile::tempdir().expect("a directory");
        let (id, secret) = (S3_ID, S3_SECRET);
        fs::create_dir_all(dir.path().join("data").join(BUCKET)).expect("a bucket");
        let credentials =
            format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
        fs::write(dir.path().join("credentials"), credentials).expect("a file");
        let child = Command::new(program)
            .args(["--host", "127.0.0.1", "--port", "0"])
            .args(["--access-key", id, "--secret-key", secret])
            .arg(dir.path().join("data"))
            .env("RUST_LOG", "s3s_fs=info")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("s3s-fs");
        let mut child = Running(child);
        let mut output = BufReader::new(child.0.stdout.take().expect("a pipe"));
        let mut line = String::new();
        let address = loop {
            line.clear();
            let read = output.read_line(&mut line).expect("its output");
            assert!(read > 0, "s3s-fs ends before it says where it listens");
            let Some((_, address)) = line.split_once("running at http://") else {
                continue;
            };
            let address: String = address
                .chars()
                .take_while(|c| c.is_ascii_digit() || ".:".contains(*c))
                .collect();
            break address.parse().expect("an address");
        };
        // It must not stop for a full pipe.
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut output, &mut std::io::sink());
        });
        Ok(Self {
            address,
            dir,
            _child: child,
        })
    }
}

/// Whether a server comes to answer there, rather than to end.
fn answers(child: &mut Child, address: SocketAddr) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if child.try_wait().expect("a child").is_some() {
            return false;
        }
        if let Ok(mut stream) = TcpStream::connect(address) {
            let mut answer = [0; 1];
            let asked = stream.set_read_timeout(Some(Duration::from_secs(1)));
            let asked = asked.and_then(|()| stream.write_all(b"PING\r\n"));
            if asked.is_ok() && stream.read_exact(&mut answer).is_ok() {
                return child.try_wait().expect("a child").is_none();
            }
        }
        assert!(Instant::now() < deadline, "{address} does not answer");
        std::thread::yield_now();
    }
}

/// The target directory that this was built into.
fn target() -> PathBuf {
    let exe = std::env::current_exe().expect("the test's path");
    exe.ancestors()
        .nth(3)
        .expect("target/<profile>/deps/test")
        .into()
}

fn program_find(name: &str, first: &[&Path]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let first = first.iter().map(|dir| dir.to_path_buf());
    let mut places = first.chain(std::env::split_paths(&path));
    places.find_map(|dir| Some(dir.join(name)).filter(|program| program.is_file()))
}

/// A server that takes connections and never answers.
///
/// # Panics
/// There is no port.
pub fn hung_server() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a port")
}
