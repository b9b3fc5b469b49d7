//! What processes in a simulation run: functions that do one thing, and tell the recorder.

use std::io::ErrorKind;
use std::time::Duration;

use praas_runtime::prelude::*;
use serde::{Deserialize, Serialize};

use super::world::here;
use crate::checker::{Action, Event, Outcome, Reply};

/// The function that runs at most once.
pub(super) const APPLY: &str = "apply";
/// The function that may run again.
pub(super) const AGAIN: &str = "again";
/// State objects under it grow by appending.
pub(super) const APPENDED: &str = "append/";
/// What begins so is a file in the process's directory, and no state object.
pub(super) const FILES: &str = "file/";
/// This one is large where states come back lazily: so large that it comes later.
const LARGE: &str = "n/b";
pub(super) const LARGE_BYTES: usize = 65 << 10;

/// What a function is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    /// Names the call, for the history.
    pub call: u64,
    pub todo: Todo,
    /// Makes it larger.
    pub padding: Vec<u8>,
}

/// The one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Todo {
    Read(String),
    Write(String, u64),
    CompareSwap(String, Option<u64>, u64),
    Add(String, u64),
    Erase(String),
    /// Have an object written through, perhaps after writing it, within so many milliseconds.
    Persist(String, Option<u64>, u64),
    Take(Option<String>, String),
    Peek(Option<String>, String),
    /// Take, waiting up to so many milliseconds.
    Wait(Option<String>, String, u64),
    /// Invoke another process, with a deadline in milliseconds.
    Invoke(String, Box<Request>, u64),
    /// Invoke another process many times at once.
    Batch(String, Vec<Request>, u64),
    /// Invoke another process, and not wait for it.
    OneWay(String, Box<Request>, u64),
    /// Read another process's object without it.
    Look {
        call: u64,
        of: String,
        key: String,
        within_ms: u64,
    },
    /// Put a message into another process's mailbox, with a deadline in milliseconds.
    Put {
        call: u64,
        to: String,
        key: String,
        message: u64,
        padding: Vec<u8>,
        within_ms: u64,
    },
}

/// A reply, as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Given {
    Done,
    Value(Option<u64>),
    Wrote(bool),
    Sum(u64),
    Durable(Option<u64>),
    DurableLater,
    Message(Option<(String, u64)>),
}

impl From<Given> for Reply {
    fn from(given: Given) -> Self {
        match given {
            Given::Done => Self::Done,
            Given::Value(value) => Self::Value(value),
            Given::Wrote(wrote) => Self::Wrote(wrote),
            Given::Sum(sum) => Self::Sum(sum),
            Given::Durable(value) => Self::Durable(value),
            Given::DurableLater => Self::DurableLater,
            Given::Message(message) => Self::Message(message),
        }
    }
}

impl Todo {
    /// What the checker is told that it is.
    pub fn action(&self) -> Action {
        match self.clone() {
            Self::Read(key) => Action::Read { key },
            Self::Write(key, value) => Action::Write { key, value },
            Self::CompareSwap(key, expected, value) => Action::CompareSwap {
                key,
                expected,
                value,
            },
            Self::Add(key, amount) => Action::Add { key, amount },
            Self::Erase(key) => Action::Erase { key },
            Self::Persist(key, write, _) => Action::Persist { key, write },
            Self::Take(source, key) | Self::Wait(source, key, _) => Action::Take { source, key },
            Self::Peek(source, key) => Action::Peek { source, key },
            Self::Invoke(..)
            | Self::Batch(..)
            | Self::OneWay(..)
            | Self::Look { .. }
            | Self::Put { .. } => Action::Other,
        }
    }

    /// Running it twice does no harm.
    pub fn idempotent(&self) -> bool {
        matches!(self, Self::Read(_) | Self::Write(..))
    }
}

#[praas_runtime::function]
fn apply(context: &Context, request: Request) -> Result<Given, FunctionError> {
    run(context, request)
}

#[praas_runtime::function(idempotent)]
fn again(context: &Context, request: Request) -> Result<Given, FunctionError> {
    run(context, request)
}

praas_runtime::module!(static "simulation", [apply, again]);

fn run(context: &Context, request: Request) -> Result<Given, FunctionError> {
    let (process, incarnation) = (context.process().to_owned(), context.incarnation());
    let lives = || here(|world| world.lives(&process, incarnation));
    let note = |event: Event| {
        // What a killed process would have gone on to say, nobody hears; but one that is taken for
        // dead may tell somebody that something is durable.
        let durable = matches!(
            event,
            Event::Ran {
                reply: Reply::Durable(_) | Reply::DurableLater,
                ..
            }
        );
        let heard = || durable && here(|world| world.is_ghost(&process, incarnation));
        if lives() || heard() {
            here(|world| world.note(event));
        }
    };
    let call = request.call;
    note(Event::Began {
        call,
        process: process.clone(),
        incarnation,
    });
    let given = act(context, request.todo)?;
    note(Event::Ran {
        call,
        process: process.clone(),
        incarnation,
        reply: given.clone().into(),
    });
    Ok(given)
}

fn act(context: &Context, todo: Todo) -> Result<Given, FunctionError> {
    Ok(match todo {
        Todo::Read(key) if key.starts_with(FILES) => Given::Value(file_read(context, &key)?),
        Todo::Read(key) => Given::Value(value(context, &key)?.0),
        Todo::Write(key, value) if key.starts_with(FILES) => {
            let path = context.state_dir()?.join(key);
            let written = path.parent().map_or(Ok(()), std::fs::create_dir_all);
            written.and_then(|()| std::fs::write(&path, bytes("", value)))?;
            Given::Done
        }
        Todo::Write(key, value) => {
            context.state_put(&key, &bytes(&key, value))?;
            Given::Done
        }
        Todo::CompareSwap(key, expected, new) => {
            let (value, version) = value(context, &key)?;
            let wrote = value == expected
                && context
                    .state_compare_swap(&key, version, &bytes(&key, new))?
                    .is_ok();
            Given::Wrote(wrote)
        }
        Todo::Add(key, amount) if key.starts_with(APPENDED) => {
            Given::Sum(context.state_append(&key, &vec![7; amount as usize])?)
        }
        // Others run while an object is on its way from storage.
        Todo::Add(key, amount) => loop {
            let (old, version) = value(context, &key)?;
            let sum = old.unwrap_or(0) + amount;
            let wrote = context.state_compare_swap(&key, version, &bytes(&key, sum))?;
            if wrote.is_ok() {
                break Given::Sum(sum);
            }
        },
        Todo::Erase(key) if key.starts_with(FILES) => {
            match std::fs::remove_file(context.state_dir()?.join(key)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => Given::Done,
            }
        }
        Todo::Erase(key) => {
            context.state_delete(&key)?;
            Given::Done
        }
        Todo::Persist(key, write, ms) => persist(context, &key, write, ms)?,
        Todo::Take(source, key) => {
            let message = context.message_try(source.as_deref(), &key)?;
            Given::Message(message.map(|message| number(&message)))
        }
        Todo::Peek(source, key) => {
            let message = context.message_peek(source.as_deref(), &key)?;
            Given::Message(message.map(|message| number(&message)))
        }
        Todo::Wait(source, key, ms) => {
            let timeout = Some(Duration::from_millis(ms));
            match context.message_get(source.as_deref(), &key, timeout) {
                Ok(message) => Given::Message(Some(number(&message))),
                // It has taken none, which is not to say that there was none.
                Err(_) => Given::Done,
            }
        }
        Todo::Invoke(process, request, ms) => {
            called(&process, request.call, request.todo.action());
            let within = Duration::from_millis(ms);
            let call = request.call;
            let input = praas_runtime::codec::encode(&*request)?;
            let output = context.invoke_within(&process, APPLY, &input, within);
            returned(context, call, output_outcome(&output));
            Given::Done
        }
        Todo::Batch(process, requests, ms) => batch(context, &process, &requests, ms)?,
        Todo::OneWay(process, request, ms) => {
            called(&process, request.call, request.todo.action());
            let input = praas_runtime::codec::encode(&*request)?;
            let within = Duration::from_millis(ms);
            let begun = context.invoke_one_way_within(&process, APPLY, &input, within);
            let text = begun
                .err()
                .map_or("one-way".into(), |error| error.to_string());
            returned(context, request.call, Outcome::Unknown(text));
            Given::Done
        }
        Todo::Look {
            call,
            of,
            key,
            within_ms,
        } => {
            called(&of, call, Action::Look { key: key.clone() });
            let within = Duration::from_millis(within_ms);
            let seen = context.peer_state_within(&of, &key, within);
            returned(context, call, seen_outcome(&key, seen));
            Given::Done
        }
        Todo::Put {
            call,
            to,
            key,
            message,
            padding,
            within_ms,
        } => {
            let source = context.process().to_owned();
            let action = Action::Put {
                source,
                key: key.clone(),
                message,
            };
            called(&to, call, action);
            let within = Duration::from_millis(within_ms);
            let body = [&message.to_le_bytes()[..], &padding].concat();
            let put = context.message_put_within(&to, &key, &body, within);
            let outcome = match put {
                Ok(()) => Outcome::Ok(Reply::Done),
                Err(error) => outcome(&error),
            };
            returned(context, call, outcome);
            Given::Done
        }
    })
}

/// Has an object written through.
fn persist(
    context: &Context,
    key: &str,
    write: Option<u64>,
    ms: u64,
) -> Result<Given, FunctionError> {
    let (value, version) = match write {
        Some(value) => (Some(value), context.state_put(key, &bytes(key, value))?),
        None if key.starts_with(APPENDED) => {
            let view = context.state_view(key)?;
            view.map_or((None, 0), |view| (Some(view.len() as u64), view.version()))
        }
        None => value(context, key)?,
    };
    let durable = context.state_persist_within(key, Duration::from_millis(ms));
    Ok(match durable {
        Ok(durable) if durable == version => Given::Durable(value),
        Ok(_) => Given::DurableLater,
        // Perhaps it is all the same.
        Err(_) => Given::Done,
    })
}

/// Many invocations of one process at once.
fn batch(
    context: &Context,
    process: &str,
    requests: &[Request],
    ms: u64,
) -> Result<Given, FunctionError> {
    let mut inputs = Vec::new();
    for request in requests {
        called(process, request.call, request.todo.action());
        inputs.push(praas_runtime::codec::encode(request)?);
    }
    let within = Duration::from_millis(ms);
    let outputs = context.invoke_batch_within(process, APPLY, &inputs, within);
    let outcomes: Vec<_> = match &outputs {
        Ok(outputs) => outputs.iter().map(output_outcome).collect(),
        Err(error) => {
            let text = error.to_string();
            vec![Outcome::Unknown(text); requests.len()]
        }
    };
    for (request, outcome) in requests.iter().zip(outcomes) {
        returned(context, request.call, outcome);
    }
    Ok(Given::Done)
}

fn output_outcome(output: &Result<View, CallError>) -> Outcome {
    match output {
        Ok(view) => match praas_runtime::codec::decode::<Given>(view) {
            Ok(given) => Outcome::Ok(given.into()),
            Err(error) => Outcome::Wrong(error.to_string()),
        },
        Err(error) => outcome(error),
    }
}

/// What was seen of another process's object; one that grows counts by its length.
fn seen_outcome(key: &str, seen: Result<Option<View>, CallError>) -> Outcome {
    let view = match seen {
        Ok(None) => return Outcome::Ok(Reply::Value(None)),
        Ok(Some(view)) => view,
        Err(error) => return Outcome::Unknown(error.to_string()),
    };
    if key.starts_with(APPENDED) {
        return Outcome::Ok(Reply::Value(Some(view.len() as u64)));
    }
    Outcome::Ok(Reply::Value(Some(meant(&view))))
}

fn called(process: &str, call: u64, action: Action) {
    here(|world| {
        world.note(Event::Called {
            call,
            process: process.into(),
            action,
            idempotent: false,
        })
    });
}

fn returned(context: &Context, call: u64, outcome: Outcome) {
    let lives = here(|world| world.lives(context.process(), context.incarnation()));
    let outcome = match lives {
        true => outcome,
        false => Outcome::Unknown("its caller was killed".into()),
    };
    here(|world| world.note(Event::Returned { call, outcome }));
}

/// What a function knows of a call of its that failed.
fn outcome(error: &CallError) -> Outcome {
    let text = error.to_string();
    match error {
        CallError::Unavailable(_) | CallError::MailboxFull(_) => Outcome::NotRun(text),
        CallError::UnknownFunction(_) | CallError::Panicked(_) | CallError::Codec(_) => {
            Outcome::Wrong(text)
        }
        // The function that was called failed, for instance because its own call did.
        _ => Outcome::Unknown(text),
    }
}

/// A state object's value and version; version zero is absent.
fn value(context: &Context, key: &str) -> Result<(Option<u64>, u64), FunctionError> {
    let view = context.state_view(key)?;
    Ok(view.map_or((None, 0), |view| (Some(meant(&view)), view.version())))
}

/// What is in a file.
fn file_read(context: &Context, name: &str) -> Result<Option<u64>, FunctionError> {
    match std::fs::read(context.state_dir()?.join(name)) {
        Ok(bytes) => Ok(Some(meant(&bytes))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The bytes of a value: they are many if that is of interest.
fn bytes(key: &str, value: u64) -> Vec<u8> {
    let times = match key {
        LARGE if here(|world| world.plan.lazy) => LARGE_BYTES / 8,
        _ => 1,
    };
    value.to_le_bytes().repeat(times)
}

/// What bytes mean. What is no number, or in parts of several, was written by nobody: the checker
/// says so.
fn meant(bytes: &[u8]) -> u64 {
    let mut numbers = bytes.chunks(8);
    let first = numbers.next().and_then(|number| number.try_into().ok());
    let Some(first) = first.filter(|first: &[u8; 8]| numbers.all(|other| other == first)) else {
        return u64::MAX;
    };
    u64::from_le_bytes(first)
}

fn number(message: &Message) -> (String, u64) {
    let bytes = message.payload.first_chunk::<8>().copied();
    // What is no number was put by nobody: the checker says so.
    let number = bytes.map_or(u64::MAX, u64::from_le_bytes);
    (message.source.clone(), number)
}
