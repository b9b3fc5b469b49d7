//! A server's connection with a fault: one answer that never comes back.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// Forwards connections to a server, and cuts one when an answer is on its way.
pub struct Cut {
    address: SocketAddr,
    /// Answers that still pass; `None`: all do.
    left: Arc<Mutex<Option<Left>>>,
}

struct Left {
    answers: u64,
    /// What happens before whoever waits for the answer learns that it does not come.
    then: Box<dyn FnOnce() + Send>,
}

impl Cut {
    /// Listens for the server at `address`.
    ///
    /// # Panics
    /// There is no port.
    pub fn start(address: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let cut = Self {
            address: listener.local_addr().expect("an address"),
            left: Arc::default(),
        };
        let left = Arc::clone(&cut.left);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(address).expect("the server");
                let left = Arc::clone(&left);
                std::thread::spawn(move || forward(&client, &server, &left));
            }
        });
        cut
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on this many answers pass; the next is swallowed, and all pass after that.
    pub fn swallow_after(&self, answers: u64) {
        self.swallow_then(answers, || {});
    }

    /// The same, and something happens before the connection is cut.
    pub fn swallow_then(&self, answers: u64, then: impl FnOnce() + Send + 'static) {
        let then = Box::new(then);
        *lock(&self.left) = Some(Left { answers, then });
    }

    /// Whether the answer was swallowed; if not, none will be.
    pub fn swallowed(&self) -> bool {
        lock(&self.left).take().is_none()
    }
}

fn forward(client: &TcpStream, server: &TcpStream, left: &Mutex<Option<Left>>) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            copy(client, server, |_| true);
            let _ = server.shutdown(Shutdown::Write);
        });
        copy(server, client, |_| {
            let mut left = lock(left);
            let last = left.take_if(|left| left.answers == 0);
            if let Some(more) = &mut *left {
                more.answers -= 1;
            }
            drop(left);
            match last {
                Some(last) => {
                    (last.then)();
                    false
                }
                None => true,
            }
        });
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    });
}

/// Copies while it may; a read is an answer, as far as small ones go.
fn copy(mut from: &TcpStream, mut to: &TcpStream, passes: impl Fn(&[u8]) -> bool) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        if !passes(&bytes[..read]) || to.write_all(&bytes[..read]).is_err() {
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
