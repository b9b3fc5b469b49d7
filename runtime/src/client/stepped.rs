//! The blocking client, moved by somebody else's loop: for deterministic simulations.

use praas_transport::{Endpoint, clock};

use super::blocking::Client;

impl Client {
    /// One round on the endpoint and what time has made due, without waiting or spinning; whether
    /// anything happened. [`Client::wait_any`] with a deadline that is over tells what has ended.
    #[doc(hidden)]
    pub fn step(&mut self) -> bool {
        let shell = &mut self.shell;
        let (endpoint, handler) = (&mut shell.endpoint, &mut shell.handler);
        let mut happened = endpoint.progress(handler) > 0;
        let now = clock::now();
        if endpoint.timer_next().is_some_and(|timer| timer <= now) {
            Endpoint::wait(endpoint, Some(now));
        }
        let timer = handler.peers.timer_next();
        if timer.is_some_and(|timer| timer <= now) {
            handler.peers.tick(endpoint, now);
            happened = true;
        }
        happened
    }

    /// Cuts all of its channels, as a broken wire does.
    #[doc(hidden)]
    pub fn sever(&mut self) {
        self.shell.endpoint.sever();
    }
}
