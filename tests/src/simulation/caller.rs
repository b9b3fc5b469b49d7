//! A client, and what it has under way.

use std::collections::HashMap;
use std::time::Duration;

use praas_runtime::client::{CallId, CallOptions, Client, ClientConfig, Directory};
use praas_runtime::codec;
use praas_runtime::invocation::InvokeError;
use praas_transport::{Address, Credential, Kinds, TransportConfig, WaitMode, clock};

use super::functions::{AGAIN, APPLY, Given, Request};
use crate::checker::{Action, Event, Outcome, Reply};

/// A client of the simulation.
pub(super) struct Caller {
    client: Client,
    /// What is under way, by the client's names for it.
    calls: HashMap<CallId, (u64, Doing)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Invoke,
    Put,
}

impl Caller {
    pub fn new(directory: Address, credential: Credential, transport: TransportConfig) -> Self {
        let config = ClientConfig {
            transports: Kinds::all(),
            wait: WaitMode::Warm,
            transport,
            ..ClientConfig::new(Directory::Agent(vec![directory]), credential)
        };
        Self {
            client: Client::new(config).expect("a client"),
            calls: HashMap::new(),
        }
    }

    pub fn under_way(&self) -> usize {
        self.calls.len() + self.client.one_way().pending as usize
    }

    /// Calls a function and does not wait for it; the events of it.
    pub fn invoke_one_way(
        &mut self,
        process: &str,
        request: &Request,
        within: Option<Duration>,
    ) -> Vec<Event> {
        let options = CallOptions {
            deadline: within.map(|within| clock::now() + within),
            idempotent: false,
        };
        let input = codec::encode(request).expect("a request has an encoding");
        let function = self.client.function(process, APPLY);
        let begun =
            function.and_then(|function| self.client.call_one_way(function, &input, options));
        let text = begun
            .err()
            .map_or("one-way".into(), |error| error.to_string());
        let called = Event::Called {
            call: request.call,
            process: process.into(),
            action: request.todo.action(),
            idempotent: false,
        };
        let returned = Event::Returned {
            call: request.call,
            outcome: Outcome::Unknown(text),
        };
        vec![called, returned]
    }

    /// Calls a function; the events of it.
    pub fn invoke(
        &mut self,
        process: &str,
        request: &Request,
        within: Option<Duration>,
        idempotent: bool,
    ) -> Vec<Event> {
        let function = if idempotent { AGAIN } else { APPLY };
        let called = Event::Called {
            call: request.call,
            process: process.into(),
            action: request.todo.action(),
            idempotent,
        };
        let options = CallOptions {
            deadline: within.map(|within| clock::now() + within),
            idempotent,
        };
        let input = codec::encode(request).expect("a request has an encoding");
        let function = self.client.function(process, function);
        let call = function.and_then(|function| self.client.submit(function, &input, options));
        self.begun(request.call, Doing::Invoke, called, call)
    }

    /// Puts a message; the events of it.
    pub fn put(
        &mut self,
        process: &str,
        call: u64,
        action: Action,
        padding: &[u8],
        within: Option<Duration>,
    ) -> Vec<Event> {
        let Action::Put { key, message, .. } = &action else {
            return Vec::new();
        };
        let options = CallOptions {
            deadline: within.map(|within| clock::now() + within),
            idempotent: false,
        };
        let body = [&message.to_le_bytes()[..], padding].concat();
        let begun = self.client.message_submit(process, key, &body, options);
        let called = Event::Called {
            call,
            process: process.into(),
            action,
            idempotent: false,
        };
        self.begun(call, Doing::Put, called, begun)
    }

    fn begun(
        &mut self,
        call: u64,
        doing: Doing,
        called: Event,
        begun: Result<CallId, InvokeError>,
    ) -> Vec<Event> {
        match begun {
            Ok(id) => {
                self.calls.insert(id, (call, doing));
                vec![called]
            }
            Err(error) => {
                let outcome = outcome(Err(error), doing);
                vec![called, Event::Returned { call, outcome }]
            }
        }
    }

    /// Goes on; whether anything happened, and what has ended.
    pub fn step(&mut self) -> (bool, Vec<Event>) {
        let happened = self.client.step();
        let mut events = Vec::new();
        while let Some((id, result)) = self.client.wait_any(Some(clock::now())) {
            if let Some((call, doing)) = self.calls.remove(&id) {
                let outcome = outcome(result.map(|payload| payload.to_vec()), doing);
                events.push(Event::Returned { call, outcome });
            }
        }
        (happened || !events.is_empty(), events)
    }

    /// Its channels break.
    pub fn sever(&mut self) {
        self.client.sever();
    }

    /// Gives up on one of its calls.
    pub fn cancel(&mut self, which: usize) {
        let mut ids: Vec<_> = self
            .calls
            .iter()
            .map(|(id, (call, _))| (*call, *id))
            .collect();
        ids.sort_unstable();
        if let Some((_, id)) = ids.get(which % ids.len().max(1)) {
            self.client.cancel(*id);
        }
    }
}

/// What a caller knows of a call that has ended.
fn outcome(result: Result<Vec<u8>, InvokeError>, doing: Doing) -> Outcome {
    let error = match (result, doing) {
        (Ok(_), Doing::Put) => return Outcome::Ok(Reply::Done),
        (Ok(bytes), Doing::Invoke) => {
            return match codec::decode::<Given>(&bytes) {
                Ok(given) => Outcome::Ok(given.into()),
                Err(error) => Outcome::Wrong(format!("no reply: {error}")),
            };
        }
        (Err(error), _) => error,
    };
    let text = error.to_string();
    match error {
        InvokeError::Unavailable { .. } | InvokeError::MailboxFull(_) => Outcome::NotRun(text),
        InvokeError::UnknownFunction(_)
        | InvokeError::Panicked(_)
        | InvokeError::TooLarge(_)
        | InvokeError::Malformed(_) => Outcome::Wrong(text),
        // A function fails if its own call does.
        _ => Outcome::Unknown(text),
    }
}
