//! Who takes the private cluster down if the demo is killed: `praas down`, which waits for the end of
//! a pipe that only the demo holds.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};

use crate::run_dir::RunDir;
use crate::spawn::{Poller, Spawn, Watched};

/// How long the guard's own end may take.
const END: Duration = Duration::from_secs(5);

/// A guard that waits. Dropping it sends it away, and the cluster stays.
#[derive(Debug)]
pub(super) struct Guard {
    watched: Watched,
    _pipe: OwnedFd,
}

impl Guard {
    pub(super) fn start(run_dir: &RunDir) -> io::Result<Self> {
        // The kernel closes our end however we end; nobody else has it.
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut command: Vec<OsString> = vec![std::env::current_exe()?.into()];
        let arguments = ["down", "--after-stdin", "--kill", "--purge", "--run-dir"];
        command.extend(arguments.map(OsString::from));
        command.push(run_dir.root().into());
        let null = File::options().write(true).open("/dev/null")?;
        let spawn = Spawn {
            command: &command,
            inherit: None,
            environment: &[],
            stdin: theirs.as_fd(),
            output: null.as_fd(),
            extra: None,
        };
        Ok(Self {
            watched: spawn.start()?,
            _pipe: ours,
        })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.watched.kill();
        let ended = Poller::new().and_then(|mut poller| {
            poller.add(&self.watched, 0, false)?;
            poller.wait(Some(END))?;
            self.watched.exit()
        });
        match ended {
            Ok(Some(_)) => {}
            other => tracing::warn!(?other, "the demo's guard does not end"),
        }
    }
}
