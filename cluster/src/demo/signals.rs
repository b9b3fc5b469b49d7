//! Signals that want us to end: heard by a thread, so that there is time for cleaning up.

use std::io;
use std::thread::JoinHandle;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::DemoError;

/// Listens until it is dropped.
#[derive(Debug)]
pub(super) struct Signals {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Signals {
    /// Calls `heard` with the name of the first signal that comes from now on.
    pub(super) fn watch(
        heard: impl FnOnce(&'static str) + Send + 'static,
    ) -> Result<Self, DemoError> {
        let failed = |source| DemoError::system("listen for signals", source);
        let runtime = Builder::new_current_thread().enable_io().build();
        let runtime = runtime.map_err(failed)?;
        let listening = {
            let _inside = runtime.enter();
            Listening::new().map_err(failed)?
        };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("signals".into());
        let thread = thread.spawn(move || {
            if let Some(name) = runtime.block_on(listening.first(stopped)) {
                heard(name);
            }
        });
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread.map_err(failed)?),
        })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has nothing that could panic.
            let _ = thread.join();
        }
    }
}

struct Listening {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Listening {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn first(mut self, stopped: oneshot::Receiver<()>) -> Option<&'static str> {
        tokio::select! {
            _ = self.interrupt.recv() => Some("SIGINT"),
            _ = self.terminate.recv() => Some("SIGTERM"),
            _ = self.hangup.recv() => Some("SIGHUP"),
            _ = stopped => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    #[test]
    fn the_first_signal_is_heard() {
        let (sender, heard) = mpsc::channel();
        let signals = Signals::watch(move |name| sender.send(name).unwrap()).unwrap();
        kill_process(getpid(), Signal::TERM).unwrap();
        assert_eq!(heard.recv_timeout(Duration::from_secs(20)), Ok("SIGTERM"));
        drop(signals);
    }

    #[test]
    fn nothing_is_heard_of_nothing() {
        let (sender, heard) = mpsc::channel();
        drop(Signals::watch(move |name| sender.send(name).unwrap()).unwrap());
        assert_eq!(heard.recv(), Err(mpsc::RecvError));
    }
}
