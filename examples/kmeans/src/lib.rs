//! K-Means as cloud processes: a coordinator and its workers.
//!
//! ```text
//!   client                    coordinator                      worker (any number)
//!     | partition_store ------------------------------------>  state "partition"
//!     | begin ------------------>  state "run"
//!     |                            message "centres" ------->  mailbox
//!     | assign --------------------------------------------->  nearest centres, state "labels"
//!     | reduce ----------------->  mailbox  <---------------  message "sums"
//!     |  <---------- progress      new centres
//!     |                            message "centres" ------->  mailbox
//!     ` ... assign and reduce again, until no point has changed its centre
//! ```
//!
//! Nothing is kept but in state objects and mailboxes, so that any of the processes may be swapped
//! out between two invocations, with its partition, its labels and the centres that it has not
//! looked at yet, and goes on where it was once somebody invokes it.

mod client;
mod lloyd;
mod points;

use praas_runtime::codec;
use praas_runtime::prelude::*;
use serde::{Deserialize, Serialize};

pub use client::Job;
pub use lloyd::{Centres, Clustering, Sums, reference};
pub use points::{Points, csv_read, digits};

/// What the clustering is to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Begin {
    /// The processes with the partitions.
    pub workers: Vec<String>,
    /// Where the centres are at first.
    pub centres: Centres,
}

/// How far the clustering has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// How often all points were assigned to their nearest centres.
    pub iterations: u64,
    /// How many points changed their centre the last time; zero ends it.
    pub changed: u64,
    /// The sum of the squared distances between the points and their centres.
    pub inertia: f64,
    /// Points by centre.
    pub sizes: Vec<u64>,
}

/// What the coordinator knows between two invocations.
#[derive(Debug, Serialize, Deserialize)]
struct Run {
    workers: Vec<String>,
    centres: Centres,
    iterations: u64,
}

/// At a worker: keeps the points that it is to assign. They are numbers of eight bytes,
/// little-endian, row by row.
#[praas_runtime::function]
fn partition_store(context: &Context, points: &[u8]) -> Result<(), FunctionError> {
    context.state_put("partition", points)?;
    context.state_delete("labels")?;
    Ok(())
}

/// At the coordinator: begins a clustering by telling the workers where the centres are.
#[praas_runtime::function]
fn begin(context: &Context, begin: Begin) -> Result<(), FunctionError> {
    begin.centres.check()?;
    let run = Run {
        workers: begin.workers,
        centres: begin.centres,
        iterations: 0,
    };
    centres_send(context, &run)?;
    context.state_store("run", &run)?;
    Ok(())
}

/// At a worker: takes the centres out of the mailbox, finds for each point the nearest, and sends
/// the coordinator what it needs to know of them.
#[praas_runtime::function]
fn assign(context: &Context, coordinator: String) -> Result<(), FunctionError> {
    let Some(partition) = context.state_view("partition")? else {
        let process = context.process();
        return Err(FunctionError::new(format!("{process} has no partition")));
    };
    let message = context.message_get(Some(&coordinator), "centres", None)?;
    let centres: Centres = message.value()?;
    let mut labels = context.state_load("labels")?.unwrap_or_default();
    let sums = lloyd::assign(&partition, &centres, &mut labels)?;
    context.state_store("labels", &labels)?;
    context.message_put(&coordinator, "sums", &codec::encode(&sums)?)?;
    Ok(())
}

/// At the coordinator: waits for the sums of all workers, moves the centres to the middle of their
/// points, and tells the workers, unless nothing has changed.
#[praas_runtime::function]
fn reduce(context: &Context) -> Result<Progress, FunctionError> {
    let Some(mut run) = context.state_load::<Run>("run")? else {
        return Err(FunctionError::new("no clustering was begun here"));
    };
    // Added up worker by worker, whoever is first: so the last bits are the same in every run.
    let mut total = Sums::new(&run.centres);
    for worker in &run.workers {
        let message = context.message_get(Some(worker), "sums", None)?;
        total.add(&message.value()?)?;
    }
    run.iterations += 1;
    if total.changed > 0 {
        run.centres.advance(&total);
        centres_send(context, &run)?;
    }
    context.state_store("run", &run)?;
    Ok(Progress {
        iterations: run.iterations,
        changed: total.changed,
        inertia: total.inertia,
        sizes: total.counts,
    })
}

fn centres_send(context: &Context, run: &Run) -> Result<(), FunctionError> {
    let centres = codec::encode(&run.centres)?;
    for worker in &run.workers {
        context.message_put(worker, "centres", &centres)?;
    }
    Ok(())
}

praas_runtime::module!("kmeans", [partition_store, begin, assign, reduce]);
