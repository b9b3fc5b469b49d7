//! Transfers between two processes of this OS process, without agents.

mod alone;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use alone::Keys;
use praas_runtime::client::CallOptions;
use praas_runtime::invocation::InvokeError;
use praas_runtime::prelude::*;
use praas_runtime::process::{
    Bound, Process, PullFrom, TransferError, TransferOffer, TransferStep,
};
use praas_runtime::transfer::{PullError, SourceCounts};
use praas_transport::{Incarnation, StatsPage};

const PATIENCE: Duration = Duration::from_secs(60);
const TOKEN: [u8; 16] = [7; 16];

#[praas_runtime::function]
fn waits(context: &Context) -> Result<(), FunctionError> {
    context.message_get(None, "go", None)?;
    Ok(())
}

praas_runtime::module!(static "tests", [waits]);

type Outcome = Result<SourceCounts, TransferError>;

/// Lets incarnation 2 have the process.
fn sending(process: &Arc<Process>) -> (JoinHandle<Outcome>, Receiver<TransferStep>) {
    let (steps, seen) = channel();
    let source = Arc::clone(process);
    let sends = std::thread::spawn(move || {
        let offer = TransferOffer {
            incarnation: Incarnation(2),
            token: TOKEN,
        };
        source.transfer_out(offer, |step| steps.send(step).unwrap())
    });
    (sends, seen)
}

type Call = JoinHandle<Result<(), InvokeError>>;

/// A function that runs until it is released.
fn waiting(keys: &Keys, process: &Process) -> Call {
    let mut caller = keys.client(process);
    let call = std::thread::spawn(move || caller.invoke("p", "waits", b"").map(drop));
    let until = Instant::now() + PATIENCE;
    while process.stats().blocked == 0 {
        assert!(Instant::now() < until, "nothing runs");
        std::thread::yield_now();
    }
    call
}

fn released(keys: &Keys, process: &Process, call: Call) {
    let mut other = keys.client(process);
    let options = CallOptions::default();
    other.message_put("p", "go", b"", options).unwrap();
    call.join().unwrap().unwrap();
}

#[test]
fn a_transfer_is_called_off_while_functions_are_waited_for() {
    let keys = Keys::new();
    let process = Arc::new(keys.start(1, module(), None));
    let (sends, seen) = sending(&process);
    assert_eq!(seen.recv_timeout(PATIENCE), Ok(TransferStep::Offered));
    let call = waiting(&keys, &process);
    let from = PullFrom {
        addresses: process.addresses().to_vec(),
        incarnation: Incarnation(1),
        token: TOKEN,
    };
    let page = Arc::new(StatsPage::private());
    let mut target = Bound::new(keys.config(2, module()), page).unwrap();
    let pulls = std::thread::spawn(move || target.pull(&from, || false).map(drop));
    assert_eq!(seen.recv_timeout(PATIENCE), Ok(TransferStep::Freezing));
    process.transfer_cancel();
    let outcome = sends.join().unwrap();
    // Not that a function still ran when the wait was over.
    assert!(
        matches!(outcome, Err(TransferError::Cancelled)),
        "{outcome:?}"
    );
    let pulled = pulls.join().unwrap();
    assert!(matches!(pulled, Err(PullError::Source(_))), "{pulled:?}");
    // It serves on.
    released(&keys, &process, call);
}

#[test]
fn nobody_is_turned_away_for_a_function_that_does_not_end() {
    let keys = Keys::new();
    let mut config = keys.config(1, module());
    config.settings.quiesce_timeout_ms = 1;
    let process = Arc::new(Process::start(config).unwrap());
    let call = waiting(&keys, &process);
    let (sends, seen) = sending(&process);
    let outcome = sends.join().unwrap();
    assert!(
        matches!(outcome, Err(TransferError::StillRunning { running: 1, .. })),
        "{outcome:?}"
    );
    assert_eq!(seen.try_iter().count(), 0, "it was offered");
    released(&keys, &process, call);
    // Nothing runs any more.
    let (sends, seen) = sending(&process);
    assert_eq!(seen.recv_timeout(PATIENCE), Ok(TransferStep::Offered));
    process.transfer_cancel();
    let outcome = sends.join().unwrap();
    assert!(
        matches!(outcome, Err(TransferError::Cancelled)),
        "{outcome:?}"
    );
}
