//! Transfers between two processes of this OS process, without agents.

mod alone;

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use alone::Keys;
use praas_runtime::client::CallOptions;
use praas_runtime::prelude::*;
use praas_runtime::process::{Bound, PullFrom, TransferError, TransferOffer, TransferStep};
use praas_runtime::transfer::PullError;
use praas_transport::{Incarnation, StatsPage};

const PATIENCE: Duration = Duration::from_secs(60);
const TOKEN: [u8; 16] = [7; 16];

#[praas_runtime::function]
fn waits(context: &Context) -> Result<(), FunctionError> {
    context.message_get(None, "go", None)?;
    Ok(())
}

praas_runtime::module!(static "tests", [waits]);

#[test]
fn a_transfer_is_called_off_while_functions_are_waited_for() {
    let keys = Keys::new();
    let process = Arc::new(keys.start(1, module(), None));
    let mut caller = keys.client(&process);
    let call = std::thread::spawn(move || caller.invoke("p", "waits", b"").map(drop));
    let until = Instant::now() + PATIENCE;
    while process.stats().blocked == 0 {
        assert!(Instant::now() < until, "nothing runs");
        std::thread::yield_now();
    }
    let (steps, seen) = channel();
    let source = Arc::clone(&process);
    let sends = std::thread::spawn(move || {
        let offer = TransferOffer {
            incarnation: Incarnation(2),
            token: TOKEN,
        };
        source.transfer_out(offer, |step| steps.send(step).unwrap())
    });
    assert_eq!(seen.recv_timeout(PATIENCE), Ok(TransferStep::Offered));
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
    let mut other = keys.client(&process);
    let options = CallOptions::default();
    other.message_put("p", "go", b"", options).unwrap();
    call.join().unwrap().unwrap();
}
