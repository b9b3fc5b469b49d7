//! Calls of real clients, written down as they go.

use std::time::{Duration, Instant};

use praas_runtime::client::{CallOptions, Client};
use praas_runtime::codec;
use praas_runtime::invocation::InvokeError;
use praas_runtime::mailbox::Source;
use praas_runtime::process::{
    MESSAGE_TAKE, MessageTakeInput, STATE_DELETE, STATE_GET, STATE_PUT, StatePutInput,
};

use super::history::{Action, Call, Event, Outcome, Recorder, Reply};

/// How long a call may take: longer than any client tries. No answer within that is a violation,
/// whatever became of the call.
const WITHIN: Duration = Duration::from_secs(60);
/// What `count` of the lab's module counts in.
pub const COUNT: &str = "count";

/// Makes a call, and writes down how it went, which it returns. Additions are those of the lab's
/// function `count`.
///
/// # Panics
/// Clients cannot do this.
pub fn call(
    recorder: &Recorder,
    client: &mut Client,
    process: &str,
    (call, action): (Call, Action),
) -> Outcome {
    recorder.note(Event::Called {
        call,
        process: process.into(),
        action: action.clone(),
        idempotent: false,
    });
    let outcome = outcome(&action, make(client, process, &action));
    recorder.note(Event::Returned {
        call,
        outcome: outcome.clone(),
    });
    outcome
}

fn make(client: &mut Client, process: &str, action: &Action) -> Result<Reply, InvokeError> {
    let options = CallOptions {
        deadline: Some(Instant::now() + WITHIN),
        idempotent: false,
    };
    let mut invoke = |name: &str, input: &[u8]| {
        let function = client.function(process, name)?;
        client.call(function, input, options)
    };
    let number = |bytes: &[u8]| {
        let number = bytes.first_chunk::<8>().copied().map(u64::from_le_bytes);
        number.ok_or_else(|| InvokeError::Malformed("no number".into()))
    };
    let malformed = |error: codec::CodecError| InvokeError::Malformed(error.to_string());
    match action {
        Action::Read { key } => match invoke(STATE_GET, key.as_bytes()) {
            Ok(bytes) => Ok(Reply::Value(Some(number(&bytes)?))),
            Err(InvokeError::Function(text)) if text.contains("no state object") => {
                Ok(Reply::Value(None))
            }
            Err(error) => Err(error),
        },
        Action::Write { key, value } => {
            let input = StatePutInput {
                key: key.clone(),
                value: value.to_le_bytes().to_vec(),
            };
            let input = codec::encode(&input).map_err(malformed)?;
            invoke(STATE_PUT, &input).map(|_| Reply::Done)
        }
        Action::Erase { key } => invoke(STATE_DELETE, key.as_bytes()).map(|_| Reply::Done),
        Action::Add { key, amount } if key == COUNT => {
            let input = codec::encode(amount).map_err(malformed)?;
            let sum = invoke("count", &input)?;
            Ok(Reply::Sum(codec::decode(&sum).map_err(malformed)?))
        }
        Action::Put { key, message, .. } => {
            let body = message.to_le_bytes();
            let put = client.message_put(process, key, &body, options);
            put.map(|()| Reply::Done)
        }
        Action::Take { key, .. } => {
            let input = MessageTakeInput {
                source: Source::Any,
                key: key.clone(),
            };
            let input = codec::encode(&input).map_err(malformed)?;
            let taken = invoke(MESSAGE_TAKE, &input)?;
            let taken: Option<(String, Vec<u8>)> = codec::decode(&taken).map_err(malformed)?;
            let taken = taken.map(|(source, body)| Ok((source, number(&body)?)));
            Ok(Reply::Message(taken.transpose()?))
        }
        other => panic!("no client does {other:?}"),
    }
}

fn outcome(action: &Action, result: Result<Reply, InvokeError>) -> Outcome {
    let error = match result {
        Ok(reply) => return Outcome::Ok(reply),
        Err(error) => error,
    };
    let text = format!("{action:?}: {error}");
    match error {
        InvokeError::Unavailable { .. } | InvokeError::MailboxFull(_) => Outcome::NotRun(text),
        InvokeError::Cancelled | InvokeError::OutcomeUnknown | InvokeError::ResultExpired => {
            Outcome::Unknown(text)
        }
        _ => Outcome::Wrong(text),
    }
}
