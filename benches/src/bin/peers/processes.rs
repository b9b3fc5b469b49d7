//! Programs with a deadline, pinned; and the floor, which waits between them.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::parse;
use crate::plan::{Measure, Transport};

/// Bytes of the file that the two sides of a pair share: `FILE_BYTES` in pair.c.
const FILE_BYTES: u64 = 8 << 20;
/// How often it is looked whether a server listens already.
const LISTEN_LOOK: Duration = Duration::from_millis(1);

/// A program to start, by words.
#[derive(Debug, Clone, Default)]
pub struct Job {
    words: Vec<OsString>,
    variables: Vec<(&'static str, OsString)>,
}

impl Job {
    /// A program and its arguments.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            words: vec![program.into()],
            variables: Vec::new(),
        }
    }

    /// Whatever follows, on a CPU.
    pub fn on(cpu: usize) -> Self {
        Self::new("taskset").words(["-c", &cpu.to_string()])
    }

    /// One more argument.
    pub fn word(mut self, word: impl Into<OsString>) -> Self {
        self.words.push(word.into());
        self
    }

    /// More arguments.
    pub fn words<I: IntoIterator<Item = W>, W: Into<OsString>>(mut self, words: I) -> Self {
        self.words.extend(words.into_iter().map(Into::into));
        self
    }

    /// The words of another job, as further arguments; its variables, too.
    pub fn job(mut self, other: Self) -> Self {
        self.words.extend(other.words);
        self.variables.extend(other.variables);
        self
    }

    /// A variable of its environment.
    pub fn variable(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    /// Starts it in a process group of its own, to be ended with all that it starts.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, deadline: Duration) -> Result<Running, String> {
        let name = self.words.iter().find(|word| Path::new(word).is_absolute());
        let name = name
            .unwrap_or(&self.words[0])
            .to_string_lossy()
            .into_owned();
        let child = Command::new("timeout")
            .arg("--kill-after=2")
            .arg(deadline.as_secs().to_string())
            .args(&self.words)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("cannot start {name}: {error}"))?;
        Ok(Running {
            child: Some(child),
            name,
        })
    }

    /// Runs it to its end; what it printed.
    ///
    /// # Errors
    /// It failed or was too late.
    pub fn run(&self, deadline: Duration) -> Result<String, String> {
        self.start(deadline)?.finish()
    }
}

/// A program that runs; it ends with this.
pub struct Running {
    child: Option<Child>,
    name: String,
}

impl Running {
    /// Waits for its end; what it printed.
    ///
    /// # Errors
    /// It failed or was too late.
    pub fn finish(mut self) -> Result<String, String> {
        /// What `timeout` returns when it had to act.
        const LATE: i32 = 124;
        let child = self.child.take().ok_or("it is not running")?;
        let name = short(&self.name);
        let output = child.wait_with_output();
        let output = output.map_err(|error| format!("cannot wait for {name}: {error}"))?;
        let Output {
            status,
            stdout,
            stderr,
        } = output;
        let stdout = String::from_utf8_lossy(&stdout).into_owned();
        let stderr = String::from_utf8_lossy(&stderr);
        match status.code() {
            Some(0) => Ok(stdout),
            Some(LATE) => Err(format!("{name} did not end in time")),
            _ => {
                let said = parse::excerpt(&format!("{stdout} {stderr}"));
                Err(format!("{name}: {status}: {said}"))
            }
        }
    }

    fn end(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        group_kill(&child);
        // It may have ended by itself, which is as good.
        let _ = child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// Kills a child that leads a process group, with all of the group.
fn group_kill(child: &Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // Nobody is left in it: as good.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

fn short(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// A server and, once it listens at the port, a client; what the client printed.
///
/// # Errors
/// One of them failed or was too late.
pub fn served(server: &Job, port: u16, client: &Job, deadline: Duration) -> Result<String, String> {
    let mut server = server.start(deadline)?;
    let begun = Instant::now();
    while !port_listens(port)? {
        let ended = match &mut server.child {
            Some(child) => child
                .try_wait()
                .map_err(|error| error.to_string())?
                .is_some(),
            None => true,
        };
        if ended || begun.elapsed() > deadline {
            server.finish()?;
            return Err("the server did not listen".into());
        }
        std::thread::park_timeout(LISTEN_LOOK);
    }
    let printed = client.run(deadline)?;
    server.finish()?;
    Ok(printed)
}

/// Whether somebody listens at a TCP port, without a connection that would disturb them.
fn port_listens(port: u16) -> Result<bool, String> {
    /// The state in /proc/net/tcp.
    const LISTEN: &str = "0A";
    for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // Without IPv6 there is no second file.
        let Ok(table) = std::fs::read_to_string(file) else {
            continue;
        };
        let suffix = format!(":{port:04X}");
        let listens = table.lines().skip(1).any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let local = fields.next().is_some_and(|local| local.ends_with(&suffix));
            local && fields.nth(1) == Some(LISTEN)
        });
        if listens {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A TCP port that is free now.
///
/// # Errors
/// There is none.
pub fn port_free() -> Result<u16, String> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0));
    let address = listener.and_then(|listener| listener.local_addr());
    address
        .map(|address| address.port())
        .map_err(|error| format!("no port is free: {error}"))
}

/// The file that the two sides of a pair share; it goes with this.
pub struct SharedFile(PathBuf);

impl SharedFile {
    /// Makes one full of zeros, in memory.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn new(name: &str) -> Result<Self, String> {
        let path = PathBuf::from(format!(
            "/dev/shm/praas-peers-{}-{name}",
            std::process::id()
        ));
        let error = |error| format!("cannot make {}: {error}", path.display());
        File::create_new(&path)
            .and_then(|file| file.set_len(FILE_BYTES))
            .map_err(error)?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SharedFile {
    fn drop(&mut self) {
        // Nothing else can be done about a file that does not go.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The two processes of the floor; between measurements they use no CPU.
pub struct Floor {
    sides: Vec<(Child, ChildStdin)>,
    lines: Receiver<String>,
    deadline: Duration,
    _file: SharedFile,
}

impl Floor {
    /// Starts them.
    ///
    /// # Errors
    /// They cannot be started.
    pub fn start(
        program: &Path,
        transport: Transport,
        cpus: [usize; 2],
        deadline: Duration,
    ) -> Result<Self, String> {
        let file = SharedFile::new(&format!("floor-{transport}"))?;
        let mut sides = Vec::new();
        let (lines_in, lines) = channel();
        for (side, cpu) in cpus.into_iter().enumerate() {
            let mut child = Command::new("taskset")
                .args(["-c", &cpu.to_string()])
                .arg(program)
                .arg(side.to_string())
                .arg(file.path())
                .arg(transport.name())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .process_group(0)
                .spawn()
                .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
            let (input, output) = (child.stdin.take(), child.stdout.take());
            if let Some(input) = input {
                sides.push((child, input));
            }
            let (Some(output), 0) = (output, side) else {
                continue;
            };
            let lines_in = lines_in.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if lines_in.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Self {
            sides,
            lines,
            deadline,
            _file: file,
        })
    }

    /// Nanoseconds of the floor now: the median of a few blocks.
    ///
    /// # Errors
    /// The floor has ended or says what it should not.
    pub fn measure(&mut self, measure: Measure) -> Result<f64, String> {
        const BLOCKS: usize = 5;
        for (_, input) in &mut self.sides {
            writeln!(input, "{measure} {BLOCKS}")
                .map_err(|error| format!("the floor has ended: {error}"))?;
        }
        let mut blocks = Vec::new();
        loop {
            let line = self.lines.recv_timeout(self.deadline);
            let line = line.map_err(|error| format!("the floor does not answer: {error}"))?;
            if line == format!("done {BLOCKS}") {
                break;
            }
            blocks.push(line);
        }
        let blocks = parse::floors(&blocks, measure)?;
        crate::figures::median(blocks).ok_or_else(|| "the floor has no blocks".into())
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        for (child, _) in &mut self.sides {
            group_kill(child);
            // It may have ended by itself, which is as good.
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Job {
        Job::new("sh").words(["-c", script])
    }

    #[test]
    fn what_a_program_prints_or_why_it_failed() {
        assert_eq!(shell("echo done").run(DEADLINE).as_deref(), Ok("done\n"));
        let failed = shell("echo why >&2; exit 3").run(DEADLINE).unwrap_err();
        assert!(failed.contains("why") && failed.contains('3'), "{failed}");
        let late = shell("sleep 1000").run(Duration::from_secs(1)).unwrap_err();
        assert!(late.contains("in time"), "{late}");
        let variable = shell("echo $PEERS_TEST").variable("PEERS_TEST", "set");
        assert_eq!(variable.run(DEADLINE).as_deref(), Ok("set\n"));
    }

    #[test]
    fn a_server_that_ends_is_not_waited_for() {
        let failed = served(&shell("exit 5"), 1, &shell("true"), DEADLINE).unwrap_err();
        assert!(failed.contains('5'), "{failed}");
    }

    #[test]
    fn listening_is_seen_without_connecting() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(port_listens(port), Ok(true));
        drop(listener);
        // A child that another test starts at this moment holds it until it runs its program.
        let until = Instant::now() + Duration::from_secs(20);
        while port_listens(port) != Ok(false) {
            assert!(
                Instant::now() < until,
                "port {port} is listened at for ever"
            );
            std::thread::yield_now();
        }
    }
}
