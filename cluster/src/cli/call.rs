//! Calls of processes over the data plane: invocations, messages, state.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};
use praas_control::Invocation;
use praas_runtime::client::{CallOptions, Client};
use praas_runtime::codec;
use praas_runtime::invocation::InvokeError;
use praas_runtime::mailbox::Source;
use praas_runtime::process;
use praas_runtime::process::{
    MessageTakeInput, StateCompareSwapInput, StateListInput, StatePutInput,
};
use praas_runtime::state::{ObjectMeta, StateError};
use praas_transport::{Kinds, TransportConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::Context;
use super::error::CliError;
use super::output::{size_shown, time_shown};

/// State objects that are listed with one call.
const LIST_PAGE: u32 = 1000;
/// How often a mailbox is looked at for a message that is waited for, at first and at most.
const LOOK_FIRST: Duration = Duration::from_millis(1);
const LOOK_MAX: Duration = Duration::from_millis(50);
/// Bytes that all lines of a batch may have.
const BATCH_MAX_BYTES: u64 = 1 << 40;
/// How long connections may take to close.
const CLOSE: Duration = Duration::from_millis(100);

/// Which process.
#[derive(Debug, Args)]
pub struct ProcessArgs {
    /// The application
    application: String,
    /// The process; it is swapped in if need be
    process: String,
}

/// What goes in.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct InputArgs {
    /// The input itself
    #[arg(long, value_name = "TEXT")]
    data: Option<String>,
    /// File with the input; - or, if neither is given, standard input that is no terminal
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// How to get there.
#[derive(Debug, Args)]
pub struct WayArgs {
    /// Transports that may be used, the best that works first: auto, or shm, unix, tcp
    /// [default: settings client.transports, client.transports_exclude]
    #[arg(long, value_name = "KIND,...")]
    transport: Option<Kinds>,
    /// Milliseconds that it may take [default: setting client.call_timeout_ms]
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<u64>,
}

#[derive(Debug, Args)]
pub struct InvokeArgs {
    #[command(flatten)]
    of: ProcessArgs,
    /// The function
    function: String,
    #[command(flatten)]
    input: InputArgs,
    /// Encode the input as a value of this type, for functions that take one
    #[arg(long = "in", value_enum, value_name = "TYPE", default_value = "bytes")]
    input_type: ValueType,
    /// Decode the output as a value of this type, for functions that return one
    #[arg(long = "out", value_enum, value_name = "TYPE", default_value = "bytes")]
    output_type: ValueType,
    /// Print the output as it is, also on a terminal
    #[arg(long)]
    raw: bool,
    /// Go through the control plane's HTTP gateway
    #[arg(long, conflicts_with = "transport")]
    http: bool,
    /// Names the invocation, so that it may be repeated, with --http, after a broken connection or a
    /// restart of the control plane: it runs once, and each attempt gets the first one's output
    #[arg(long, value_name = "KEY", requires = "http")]
    key: Option<String>,
    /// With --key: the incarnation of the process before the first attempt. If it has come back as
    /// another without knowing of that attempt, the call fails instead of running again
    #[arg(long, value_name = "NUMBER", requires = "key")]
    first_incarnation: Option<u64>,
    /// Do not wait for the function, only for its beginning
    #[arg(long)]
    one_way: bool,
    /// The input is lines of JSON, each of which is one input; the output is a line of JSON for each,
    /// in their order
    #[arg(long, conflicts_with_all = ["one_way", "http"])]
    batch: bool,
    #[command(flatten)]
    way: WayArgs,
}

/// Types of values that the command line can write and read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ValueType {
    /// As they are
    Bytes,
    /// String
    String,
    /// u64
    U64,
    /// i64
    I64,
    /// f64
    F64,
    /// bool
    Bool,
}

#[derive(Debug, Args)]
pub struct PutArgs {
    #[command(flatten)]
    of: ProcessArgs,
    /// The message's key
    key: String,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    way: WayArgs,
}

#[derive(Debug, Args)]
pub struct GetArgs {
    #[command(flatten)]
    of: ProcessArgs,
    /// The message's key
    key: String,
    /// Only messages of this process or client
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Wait for a message, up to the timeout
    #[arg(long)]
    wait: bool,
    /// Print the message as it is, also on a terminal
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    way: WayArgs,
}

#[derive(Debug, Subcommand)]
pub enum StateCommand {
    /// Print a state object
    Get {
        #[command(flatten)]
        of: ProcessArgs,
        /// The object's key
        key: String,
        /// Print it as it is, also on a terminal
        #[arg(long)]
        raw: bool,
        #[command(flatten)]
        way: WayArgs,
    },
    /// Write a state object
    Put {
        #[command(flatten)]
        of: ProcessArgs,
        /// The object's key
        key: String,
        #[command(flatten)]
        input: InputArgs,
        /// Only if it is at this version; 0: only if there is none
        #[arg(long, value_name = "VERSION")]
        if_version: Option<u64>,
        /// Have it written through: it outlives the process's host from then on
        #[arg(long)]
        persist: bool,
        #[command(flatten)]
        way: WayArgs,
    },
    /// Have a state object written through, or that there is none: it outlives the process's host
    Persist {
        #[command(flatten)]
        of: ProcessArgs,
        /// The object's key
        key: String,
        #[command(flatten)]
        way: WayArgs,
    },
    /// Add to the end of a state object, which is made if there is none
    Append {
        #[command(flatten)]
        of: ProcessArgs,
        /// The object's key
        key: String,
        #[command(flatten)]
        input: InputArgs,
        #[command(flatten)]
        way: WayArgs,
    },
    /// List state objects
    List {
        #[command(flatten)]
        of: ProcessArgs,
        /// Only keys that start with this
        #[arg(default_value = "")]
        prefix: String,
        /// Only keys that come after this
        #[arg(long, value_name = "KEY")]
        after: Option<String>,
        /// At most so many
        #[arg(long, value_name = "COUNT")]
        limit: Option<usize>,
        #[command(flatten)]
        way: WayArgs,
    },
    /// Delete a state object
    Delete {
        #[command(flatten)]
        of: ProcessArgs,
        /// The object's key
        key: String,
        #[command(flatten)]
        way: WayArgs,
    },
}

/// A client of an application's processes.
pub fn client_for(
    context: &Context,
    application: &str,
    transport: Option<Kinds>,
) -> Result<Client, CliError> {
    let settings = context.config()?.client;
    let session = context.session()?;
    let mut config = session.client_config(
        application,
        transport.unwrap_or(settings.transports_allowed()),
    )?;
    config.transport = settings.transport;
    Client::new(config).map_err(CliError::of)
}

/// When a call is given up.
pub fn deadline(context: &Context, timeout_ms: Option<u64>) -> Result<Instant, CliError> {
    let timeout_ms = match timeout_ms {
        Some(timeout_ms) => timeout_ms,
        None => context.config()?.client.call_timeout_ms,
    };
    let until = Instant::now().checked_add(Duration::from_millis(timeout_ms));
    until.ok_or_else(|| CliError::usage(format!("a timeout of {timeout_ms} ms is for ever")))
}

fn call(
    client: &mut Client,
    process: &str,
    function: &str,
    input: &[u8],
    deadline: Instant,
) -> Result<Vec<u8>, InvokeError> {
    let options = CallOptions {
        deadline: Some(deadline),
        ..CallOptions::default()
    };
    let function = client.function(process, function)?;
    Ok(client.call(function, input, options)?.to_vec())
}

/// Calls a function whose output is a value.
pub fn typed<T: DeserializeOwned>(
    client: &mut Client,
    process: &str,
    function: &str,
    input: &[u8],
    deadline: Instant,
) -> Result<T, CliError> {
    let output = call(client, process, function, input, deadline)?;
    codec::decode(&output)
        .map_err(|error| CliError::new(format!("the answer of {function} makes no sense"), error))
}

fn encoded(value: &impl Serialize) -> Result<Vec<u8>, CliError> {
    codec::encode(value).map_err(CliError::bad)
}

/// A process that is being called.
struct Line {
    client: Client,
    process: String,
    deadline: Instant,
}

impl Line {
    fn open(context: &Context, of: &ProcessArgs, way: &WayArgs) -> Result<Self, CliError> {
        Ok(Self {
            client: client_for(context, &of.application, way.transport)?,
            process: of.process.clone(),
            deadline: deadline(context, way.timeout_ms)?,
        })
    }

    fn call(&mut self, function: &str, input: &[u8]) -> Result<Vec<u8>, CliError> {
        let called = call(
            &mut self.client,
            &self.process,
            function,
            input,
            self.deadline,
        );
        Ok(called?)
    }

    fn typed<T: DeserializeOwned>(&mut self, function: &str, input: &[u8]) -> Result<T, CliError> {
        let (client, process) = (&mut self.client, &self.process);
        typed(client, process, function, input, self.deadline)
    }

    fn close(self) {
        self.client.close(CLOSE);
    }
}

/// Inputs of one batch at most: their outputs are printed before the next.
const BATCH_LINES: usize = 4096;

/// Invokes a function with each line of the input.
fn invoke_batch(context: &Context, args: &InvokeArgs) -> Result<(), CliError> {
    let text = String::from_utf8(input_read(&args.input, BATCH_MAX_BYTES)?)
        .map_err(|error| CliError::bad(error).about("the input is not text".into()))?;
    let mut inputs = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let number = at + 1;
        let value: serde_json::Value = serde_json::from_str(line)
            .map_err(|error| CliError::bad(error).about(format!("line {number} is not JSON")))?;
        let bytes = match value {
            serde_json::Value::String(text) => text.into_bytes(),
            value => value.to_string().into_bytes(),
        };
        inputs.push(value_encode(args.input_type, bytes)?);
    }
    let mut line = Line::open(context, &args.of, &args.way)?;
    let function = line.client.function(&line.process, &args.function)?;
    let options = CallOptions {
        deadline: Some(line.deadline),
        ..CallOptions::default()
    };
    let mut failed = 0_usize;
    for inputs in inputs.chunks(BATCH_LINES) {
        for outcome in line.client.call_batch(function, inputs, options) {
            let mut object = json!({});
            match outcome {
                Ok(output) => match value_decode(args.output_type, &output)? {
                    Some(value) => object["value"] = value,
                    None => bytes_describe(&mut object, &output),
                },
                Err(error) => {
                    failed += 1;
                    object["error"] = json!(error.to_string());
                }
            }
            context.output.object(&object)?;
        }
    }
    line.close();
    match failed {
        0 => Ok(()),
        failed => Err(CliError::text(format!(
            "{failed} of {} invocations failed",
            inputs.len()
        ))),
    }
}

impl InvokeArgs {
    fn over_http<'a>(&'a self, input: &'a [u8]) -> Invocation<'a> {
        Invocation {
            application: &self.of.application,
            process: &self.of.process,
            function: &self.function,
            input,
            key: self.key.as_deref(),
            first_incarnation: self.first_incarnation,
        }
    }
}

/// Invokes a function without waiting for its output.
fn invoke_one_way(context: &Context, args: &InvokeArgs, input: &[u8]) -> Result<(), CliError> {
    let process = &args.of.process;
    if args.http {
        let settings = context.config()?.client;
        let wait_ms = args.way.timeout_ms.unwrap_or(settings.call_timeout_ms);
        let control = context.control(Some(wait_ms))?;
        control.invoke_one_way(&args.over_http(input))?;
    } else {
        let mut line = Line::open(context, &args.of, &args.way)?;
        let function = line.client.function(process, &args.function)?;
        let options = CallOptions {
            deadline: Some(line.deadline),
            ..CallOptions::default()
        };
        line.client.call_one_way(function, input, options)?;
        let tally = line.client.one_way_wait(Some(line.deadline));
        if let Some(error) = tally.error.clone() {
            return Err(error.into());
        }
        if tally.pending > 0 {
            return Err(InvokeError::DeadlineExceeded.into());
        }
        line.close();
    }
    let answer = json!({"process": process, "function": args.function, "begun": true});
    context
        .output
        .answer(&answer, || format!("begun  {process}.{}", args.function))
}

pub fn invoke(context: &Context, args: &InvokeArgs) -> Result<(), CliError> {
    if args.batch {
        return invoke_batch(context, args);
    }
    if args.one_way {
        let input = value_encode(args.input_type, input_read(&args.input, input_max())?)?;
        return invoke_one_way(context, args, &input);
    }
    let input = value_encode(args.input_type, input_read(&args.input, input_max())?)?;
    let process = &args.of.process;
    let working = context
        .output
        .working(&format!("calling {process}.{}", args.function));
    let output = if args.http {
        let settings = context.config()?.client;
        let wait_ms = args.way.timeout_ms.unwrap_or(settings.call_timeout_ms);
        let control = context.control(Some(wait_ms))?;
        control.invoke(&args.over_http(&input))?
    } else {
        let mut line = Line::open(context, &args.of, &args.way)?;
        let output = line.call(&args.function, &input)?;
        line.close();
        output
    };
    drop(working);
    let value = value_decode(args.output_type, &output)?;
    if context.output.json {
        let mut object = json!({"process": process, "function": args.function});
        bytes_describe(&mut object, &output);
        if let Some(value) = value {
            object["value"] = value;
        }
        return context.output.object(&object);
    }
    match value {
        Some(serde_json::Value::String(text)) => context.output.line(&text),
        Some(value) => context.output.line(&value.to_string()),
        None => context.output.bytes(&output, args.raw),
    }
}

pub fn put(context: &Context, args: &PutArgs) -> Result<(), CliError> {
    let body = input_read(&args.input, input_max())?;
    let working = context.output.working("putting the message");
    let mut line = Line::open(context, &args.of, &args.way)?;
    let options = CallOptions {
        deadline: Some(line.deadline),
        ..CallOptions::default()
    };
    line.client
        .message_put(&line.process, &args.key, &body, options)?;
    line.close();
    drop(working);
    let (process, key, bytes) = (&args.of.process, &args.key, body.len());
    let answer = json!({"process": process, "key": key, "bytes": bytes});
    context.output.answer(&answer, || {
        format!("put  {} to {process} under {key}", size_shown(bytes as u64))
    })
}

pub fn get(context: &Context, args: &GetArgs) -> Result<(), CliError> {
    let input = encoded(&MessageTakeInput {
        source: args.source.clone().map_or(Source::Any, Source::From),
        key: args.key.clone(),
    })?;
    let working = context.output.working("waiting for a message");
    let mut line = Line::open(context, &args.of, &args.way)?;
    let mut look = LOOK_FIRST;
    let taken = loop {
        let taken: Option<(String, Vec<u8>)> = line.typed(process::MESSAGE_TAKE, &input)?;
        let left = line.deadline.saturating_duration_since(Instant::now());
        if taken.is_some() || !args.wait || left.is_zero() {
            break taken;
        }
        std::thread::park_timeout(look.min(left));
        look = (look * 2).min(LOOK_MAX);
    };
    line.close();
    drop(working);
    let Some((source, body)) = taken else {
        let text = format!("no message for {} under {:?}", args.of.process, args.key);
        let hint = match args.wait {
            true => "--timeout-ms waits longer",
            false => "--wait waits for one",
        };
        return Err(CliError::text(text).hint(hint));
    };
    if context.output.json {
        let mut object = json!({"process": args.of.process, "key": args.key, "source": source});
        bytes_describe(&mut object, &body);
        return context.output.object(&object);
    }
    context.output.bytes(&body, args.raw)
}

pub fn state(context: &Context, command: StateCommand) -> Result<(), CliError> {
    match command {
        StateCommand::Get { of, key, raw, way } => {
            let working = context.output.working("getting the object");
            let mut line = Line::open(context, &of, &way)?;
            let bytes = line.call(process::STATE_GET, key.as_bytes())?;
            line.close();
            drop(working);
            if context.output.json {
                let mut object = json!({"process": of.process, "key": key});
                bytes_describe(&mut object, &bytes);
                return context.output.object(&object);
            }
            context.output.bytes(&bytes, raw)
        }
        StateCommand::Put {
            of,
            key,
            input,
            if_version,
            persist,
            way,
        } => {
            let how = PutHow {
                if_version,
                persist,
            };
            state_put(context, &of, &key, &input, how, &way)
        }
        StateCommand::Persist { of, key, way } => {
            let working = context.output.working("writing the object through");
            let mut line = Line::open(context, &of, &way)?;
            let version: u64 = line.typed(process::STATE_PERSIST, key.as_bytes())?;
            line.close();
            drop(working);
            let answer = json!({"process": of.process, "key": key, "version": version});
            context.output.answer(&answer, || match version {
                0 => format!("persisted  there is no {key}"),
                version => format!("persisted  {key}, version {version}"),
            })
        }
        StateCommand::Append {
            of,
            key,
            input,
            way,
        } => state_append(context, &of, &key, &input, &way),
        StateCommand::List {
            of,
            prefix,
            after,
            limit,
            way,
        } => {
            let limit = limit.unwrap_or(usize::MAX);
            state_list(context, &of, &prefix, after, limit, &way)
        }
        StateCommand::Delete { of, key, way } => {
            let mut line = Line::open(context, &of, &way)?;
            let was_there: bool = line.typed(process::STATE_DELETE, key.as_bytes())?;
            line.close();
            let answer = json!({"process": of.process, "key": key, "deleted": was_there});
            context.output.answer(&answer, || match was_there {
                true => format!("deleted  {key}"),
                false => format!("was not there  {key}"),
            })
        }
    }
}

/// How an object is put.
#[derive(Clone, Copy)]
struct PutHow {
    /// Only if it is at this version.
    if_version: Option<u64>,
    /// And written through.
    persist: bool,
}

fn state_put(
    context: &Context,
    of: &ProcessArgs,
    key: &str,
    input: &InputArgs,
    how: PutHow,
    way: &WayArgs,
) -> Result<(), CliError> {
    let (value, key_owned) = (input_read(input, input_max())?, key.to_owned());
    let bytes = value.len() as u64;
    let working = context.output.working("putting the object");
    let mut line = Line::open(context, of, way)?;
    let version = match how.if_version {
        None => {
            let input = StatePutInput {
                key: key_owned,
                value,
            };
            line.typed(process::STATE_PUT, &encoded(&input)?)?
        }
        Some(expected) => {
            let input = StateCompareSwapInput {
                key: key_owned,
                expected,
                value,
            };
            let swapped: Result<u64, u64> =
                line.typed(process::STATE_COMPARE_SWAP, &encoded(&input)?)?;
            swapped.map_err(|actual| CliError::of(StateError::Conflict { expected, actual }))?
        }
    };
    let durable = match how.persist {
        true => Some(line.typed::<u64>(process::STATE_PERSIST, key.as_bytes())?),
        false => None,
    };
    line.close();
    drop(working);
    let mut answer = json!({"process": of.process, "key": key, "bytes": bytes, "version": version});
    if let Some(durable) = durable {
        answer["persisted"] = durable.into();
    }
    context.output.answer(&answer, || {
        let persisted = if how.persist { ", persisted" } else { "" };
        let bytes = size_shown(bytes);
        format!("put  {bytes} as {key}, version {version}{persisted}")
    })
}

fn state_append(
    context: &Context,
    of: &ProcessArgs,
    key: &str,
    input: &InputArgs,
    way: &WayArgs,
) -> Result<(), CliError> {
    let value = input_read(input, input_max())?;
    let working = context.output.working("adding to the object");
    let input = encoded(&StatePutInput {
        key: key.into(),
        value,
    })?;
    let mut line = Line::open(context, of, way)?;
    let bytes: u64 = line.typed(process::STATE_APPEND, &input)?;
    line.close();
    drop(working);
    let answer = json!({"process": of.process, "key": key, "bytes": bytes});
    context.output.answer(&answer, || {
        format!("appended  {key} has {} now", size_shown(bytes))
    })
}

fn state_list(
    context: &Context,
    of: &ProcessArgs,
    prefix: &str,
    mut after: Option<String>,
    limit: usize,
    way: &WayArgs,
) -> Result<(), CliError> {
    let mut line = Line::open(context, of, way)?;
    let mut all: Vec<(String, ObjectMeta)> = Vec::new();
    while all.len() < limit {
        let wanted = (limit - all.len()).min(LIST_PAGE as usize);
        let input = encoded(&StateListInput {
            prefix: prefix.into(),
            after: after.take(),
            limit: wanted as u32,
        })?;
        let page: Vec<(String, ObjectMeta)> = line.typed(process::STATE_LIST, &input)?;
        let whole = page.len() < wanted;
        all.extend(page);
        after = all.last().map(|(key, _)| key.clone());
        if whole {
            break;
        }
    }
    line.close();
    if context.output.json {
        return all.iter().try_for_each(|(key, meta)| {
            context.output.object(&json!({
                "key": key,
                "bytes": meta.bytes,
                "version": meta.version,
                "written_unix_ms": meta.written_unix_ms,
            }))
        });
    }
    let header = ["KEY", "BYTES", "VERSION", "WRITTEN"];
    context.output.list(&all, &header, |(key, meta)| {
        vec![
            key.clone(),
            meta.bytes.to_string(),
            meta.version.to_string(),
            time_shown(meta.written_unix_ms),
        ]
    })
}

/// Adds bytes to a JSON object: as text if they are, else in hexadecimal.
fn bytes_describe(object: &mut serde_json::Value, bytes: &[u8]) {
    object["bytes"] = json!(bytes.len());
    match std::str::from_utf8(bytes) {
        Ok(text) => object["text"] = json!(text),
        Err(_) => {
            let mut digits = String::with_capacity(bytes.len() * 2);
            for byte in bytes {
                for half in [byte >> 4, byte & 15] {
                    digits.extend(char::from_digit(half.into(), 16));
                }
            }
            object["hex"] = json!(digits);
        }
    }
}

/// Bytes that the input of one call may have: those of a message.
fn input_max() -> u64 {
    TransportConfig::default().message_max_bytes
}

fn input_read(args: &InputArgs, max: u64) -> Result<Vec<u8>, CliError> {
    let long = |name: &str| {
        CliError::usage(format!(
            "{name} has more than {max} bytes, the most that one call takes"
        ))
    };
    let read = |name: &str, from: &mut dyn Read| {
        let mut bytes = Vec::new();
        match from.take(max.saturating_add(1)).read_to_end(&mut bytes) {
            Ok(read) if read as u64 > max => Err(long(name)),
            Ok(_) => Ok(bytes),
            Err(error) => Err(CliError::bad(error).about(format!("cannot read {name}"))),
        }
    };
    match (&args.data, &args.file) {
        (Some(data), _) => Ok(data.clone().into_bytes()),
        (None, Some(path)) if path.as_os_str() == "-" => {
            read("standard input", &mut io::stdin().lock())
        }
        (None, Some(path)) => {
            let name = path.display().to_string();
            let file = File::open(path);
            let mut file =
                file.map_err(|error| CliError::bad(error).about(format!("cannot read {name}")))?;
            // What is too long is not read first.
            match file.metadata() {
                Ok(known) if known.len() > max => Err(long(&name)),
                _ => read(&name, &mut file),
            }
        }
        (None, None) if io::stdin().is_terminal() => Ok(Vec::new()),
        (None, None) => read("standard input", &mut io::stdin().lock()),
    }
}

/// The bytes of a value that is given as text.
fn value_encode(kind: ValueType, bytes: Vec<u8>) -> Result<Vec<u8>, CliError> {
    fn parsed<T: std::str::FromStr + Serialize>(text: &str) -> Result<Vec<u8>, CliError>
    where
        T::Err: std::error::Error,
    {
        let value: T = text.trim().parse().map_err(|error| {
            CliError::bad(error).about(format!("the input {text:?} is not of this type"))
        })?;
        encoded(&value)
    }
    if kind == ValueType::Bytes {
        return Ok(bytes);
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| CliError::bad(error).about("the input is not text".into()))?;
    match kind {
        ValueType::Bytes | ValueType::String => encoded(&text),
        ValueType::U64 => parsed::<u64>(&text),
        ValueType::I64 => parsed::<i64>(&text),
        ValueType::F64 => parsed::<f64>(&text),
        ValueType::Bool => parsed::<bool>(&text),
    }
}

/// The value that the output stands for; none for bytes.
fn value_decode(kind: ValueType, bytes: &[u8]) -> Result<Option<serde_json::Value>, CliError> {
    fn read<T: DeserializeOwned + Serialize>(
        bytes: &[u8],
    ) -> Result<Option<serde_json::Value>, CliError> {
        let value: T = codec::decode(bytes)
            .map_err(|error| CliError::bad(error).about("the output is not of this type".into()))?;
        Ok(Some(json!(value)))
    }
    match kind {
        ValueType::Bytes => Ok(None),
        ValueType::String => read::<String>(bytes),
        ValueType::U64 => read::<u64>(bytes),
        ValueType::I64 => read::<i64>(bytes),
        ValueType::F64 => read::<f64>(bytes),
        ValueType::Bool => read::<bool>(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_go_in_and_come_out() {
        for (kind, text, value) in [
            (ValueType::U64, "300", json!(300)),
            (ValueType::I64, "-3", json!(-3)),
            (ValueType::F64, "1.5", json!(1.5)),
            (ValueType::Bool, "true", json!(true)),
            (ValueType::String, "a b", json!("a b")),
        ] {
            let bytes = value_encode(kind, text.into()).unwrap();
            assert_eq!(value_decode(kind, &bytes).unwrap(), Some(value));
        }
        assert_eq!(value_encode(ValueType::Bytes, vec![1]).unwrap(), [1]);
        let error = value_encode(ValueType::U64, "many".into()).unwrap_err();
        assert_eq!(error.code(), super::super::error::USAGE);
        assert!(value_decode(ValueType::U64, &[]).is_err());
    }

    #[test]
    fn bytes_in_json_are_text_or_digits() {
        let mut object = json!({});
        bytes_describe(&mut object, b"hi");
        assert_eq!(object, json!({"bytes": 2, "text": "hi"}));
        let mut object = json!({});
        bytes_describe(&mut object, &[0xff, 0x01]);
        assert_eq!(object, json!({"bytes": 2, "hex": "ff01"}));
    }
}
