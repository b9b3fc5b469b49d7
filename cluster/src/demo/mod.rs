//! `praas demo`: the K-Means example on a cluster of its own, from nothing to nothing.
//!
//! ```text
//!   temporary run directory --> launch::up --> application from the example's cdylib
//!     --> coordinator and workers --> partitions --> assign, reduce, assign, reduce, ...
//!                                         after the third: one worker is swapped out,
//!                                         and comes back by being invoked
//!     --> launch::down --> latencies, on a machine that is quiet again --> results
//! ```
//!
//! The work is done by a thread, while the one that was called waits for its end or a signal: the
//! cluster is taken down in either case, and also if anything fails.

mod error;
mod guard;
mod module;
mod private;
mod report;
mod show;
mod signals;

use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use praas_control::ControlClient;
use praas_control::api::{ApplicationSpec, Process, ProcessState};
use praas_kmeans::{Job, Progress};
use praas_transport::{Kinds, TransportKind, address_choose};

pub use self::error::DemoError;
pub(crate) use self::private::PrivateCluster;
pub use self::report::Demo;
use self::show::Show;
use self::signals::Signals;
use crate::bench::{Bench, Plan, Record, bench_measure};

const APPLICATION: &str = "kmeans";
const COORDINATOR: &str = "coordinator";
/// Clusters, and so the rows that are centres at first.
const CENTRES: usize = 10;
/// After this iteration a worker is swapped out.
const SWAP_AFTER: u64 = 3;
/// Far more iterations than it takes.
const ITERATIONS_MAX: u64 = 1000;
/// How long one request or one invocation may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Sizes of the latency table.
const LATENCY_BYTES: [usize; 3] = [8, 1 << 10, 1 << 20];
const LATENCY_TRANSPORTS: [TransportKind; 3] =
    [TransportKind::Shm, TransportKind::Unix, TransportKind::Tcp];

/// The transport that the demonstration uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DemoTransport {
    /// The best that fits: shared memory.
    Auto,
    /// Shared memory.
    Shm,
    /// Unix sockets.
    Unix,
    /// RDMA; its processes listen at the address of an RDMA port, beyond loopback.
    Verbs,
    /// TCP.
    Tcp,
}

impl DemoTransport {
    /// The transports that are allowed.
    fn kinds(self) -> Kinds {
        match self {
            Self::Auto => Kinds::all(),
            Self::Shm => TransportKind::Shm.into(),
            Self::Unix => TransportKind::Unix.into(),
            Self::Verbs => TransportKind::Verbs.into(),
            Self::Tcp => TransportKind::Tcp.into(),
        }
    }

    /// Settings of the cluster that it takes.
    fn settings(self) -> Vec<String> {
        match self {
            Self::Verbs => vec![
                "agent.host_verbs_listen=[\"0.0.0.0:0\"]".into(),
                "agent.beyond_loopback=true".into(),
            ],
            Self::Auto | Self::Shm | Self::Unix | Self::Tcp => Vec::new(),
        }
    }
}

/// `praas demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoOptions {
    /// The transport between client, coordinator and workers
    #[arg(long, value_enum, default_value = "auto")]
    pub transport: DemoTransport,
    /// Worker processes, beside the coordinator
    #[arg(long, value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: u16,
    /// Milliseconds for each figure of the latency table; 0 leaves the table out
    #[arg(long, value_name = "MS", default_value_t = 200,
          value_parser = clap::value_parser!(u64).range(..=60_000))]
    pub latency_ms: u64,
    /// No progress is shown: the caller prints the results for a script.
    #[arg(skip)]
    pub quiet: bool,
    /// Settings of the cluster, as `key=value`.
    #[arg(skip)]
    pub settings: Vec<String>,
}

/// Runs the demonstration; when this returns, nothing of it is left.
///
/// # Errors
/// Anything that fails, and a signal that ends it.
pub fn demo_run(options: &DemoOptions) -> Result<Demo, DemoError> {
    let module = module::module_find()?;
    let cluster = Arc::new(PrivateCluster::new()?);
    let (sender, events) = mpsc::channel();
    let _signals = Signals::watch({
        let sender = sender.clone();
        // Nobody listens any more if the work has just ended.
        move |name| drop(sender.send(Event::Signal(name)))
    })?;
    let work = Work {
        options: options.clone(),
        module,
        cluster: Arc::clone(&cluster),
        show: Show::new(options.quiet),
    };
    let thread = std::thread::Builder::new().name("demo".into());
    let thread = thread.spawn(move || {
        let _ended = Ended(sender);
        work.run()
    });
    let thread = thread.map_err(|source| DemoError::system("start a thread", source))?;
    if let Ok(Event::Signal(name)) = events.recv() {
        cluster.kill()?;
        return Err(DemoError::Interrupted(name));
    }
    match thread.join() {
        Ok(Ok(demo)) => Ok(demo),
        Ok(Err(error)) => {
            cluster.kill()?;
            Err(error)
        }
        Err(panic) => {
            // The panic is what counts now.
            let _ = cluster.kill();
            std::panic::resume_unwind(panic)
        }
    }
}

/// What the thread that waits hears of.
enum Event {
    /// The work has ended, in whatever way.
    Ended,
    /// A signal wants us to end.
    Signal(&'static str),
}

/// Tells that the work has ended, also by a panic.
struct Ended(Sender<Event>);

impl Drop for Ended {
    fn drop(&mut self) {
        // Nobody listens any more if a signal came first.
        let _ = self.0.send(Event::Ended);
    }
}

struct Work {
    options: DemoOptions,
    module: String,
    cluster: Arc<PrivateCluster>,
    show: Show,
}

impl Work {
    fn run(mut self) -> Result<Demo, DemoError> {
        let workers: Vec<String> = (0..self.options.workers)
            .map(|part| format!("worker-{part}"))
            .collect();
        let control = self.deploy(&workers)?;
        let kind = self.transport_used(&control)?;
        let (last, swapped) = self.cluster_digits(&control, &workers)?;
        self.show.begin("taking the cluster down", None);
        self.cluster.stop()?;
        let latency = self.latency()?;
        self.show.end();
        Ok(Demo {
            inertia: last.inertia,
            iterations: last.iterations,
            sizes: last.sizes,
            transport: kind,
            swapped,
            latency,
        })
    }

    /// Brings up a cluster, the application and its processes.
    fn deploy(&mut self, workers: &[String]) -> Result<ControlClient, DemoError> {
        self.show
            .begin("starting a control plane and an agent", None);
        let mut settings = self.options.transport.settings();
        settings.extend_from_slice(&self.options.settings);
        let session = self.cluster.start(&settings)?;
        let control = session.control.with_wait(PATIENCE);
        let kinds = self.options.transport.kinds().to_string();
        let spec = ApplicationSpec {
            name: APPLICATION.into(),
            modules: vec![self.module.clone()],
            settings: [("transports".to_owned(), kinds.into())].into(),
            auto_create: false,
        };
        control
            .application_create(&spec)
            .map_err(|source| DemoError::control("create the application", source))?;
        let names = || std::iter::once(COORDINATOR).chain(workers.iter().map(String::as_str));
        let total = names().count() as u64;
        self.show.begin("starting processes", Some(total));
        for (index, name) in names().enumerate() {
            let process = control
                .process_create(APPLICATION, name)
                .map_err(|source| DemoError::control(format!("create {name}"), source))?;
            if process.state != ProcessState::Ready {
                return Err(DemoError::odd("was created", &process));
            }
            let pid = process.pid.unwrap_or_default();
            self.show
                .step(index as u64 + 1, &format!("{name}: process {pid}"));
        }
        Ok(control)
    }

    /// The transport that the client reaches the coordinator by.
    fn transport_used(&self, control: &ControlClient) -> Result<TransportKind, DemoError> {
        let process = control
            .process_show(APPLICATION, COORDINATOR)
            .map_err(|source| DemoError::control("look at the coordinator", source))?;
        match address_choose(&process.addresses, self.options.transport.kinds()) {
            Ok(address) => Ok(address.kind()),
            Err(_) => Err(DemoError::odd("cannot be reached", &process)),
        }
    }

    /// Clusters the digits, and swaps a worker out meanwhile: the last progress, and whether the
    /// worker came back.
    fn cluster_digits(
        &mut self,
        control: &ControlClient,
        workers: &[String],
    ) -> Result<(Progress, bool), DemoError> {
        let kinds = self.options.transport.kinds();
        let digits = praas_kmeans::digits().map_err(DemoError::Digits)?;
        let points = digits.count() as u64;
        let mut client = self.cluster.client(APPLICATION, kinds)?;
        self.show.begin("clustering", Some(points));
        let failed = |doing: String| move |source| DemoError::Invoke { doing, source };
        let deploying = format!("deploy {points} digits to {} workers", workers.len());
        let job = Job::deploy(
            &mut client,
            COORDINATOR,
            workers,
            &digits,
            CENTRES,
            PATIENCE,
        )
        .map_err(failed(deploying))?;
        let mut swapped = None;
        for iteration in 1..=ITERATIONS_MAX {
            let doing = format!("run iteration {iteration}");
            let progress = job.iterate(&mut client).map_err(failed(doing))?;
            let settled = points.saturating_sub(progress.changed);
            self.show.step(settled, &progress_text(&progress, points));
            if let Some(Away::Out(before)) = &swapped {
                self.worker_back(control, before)?;
                swapped = Some(Away::Back);
            }
            if progress.changed == 0 {
                client.close(Duration::from_secs(1));
                return Ok((progress, matches!(swapped, Some(Away::Back))));
            }
            if iteration == SWAP_AFTER {
                let worker = &workers[workers.len() / 2];
                swapped = Some(Away::Out(Box::new(self.worker_out(control, worker)?)));
            }
        }
        Err(DemoError::Endless(ITERATIONS_MAX))
    }

    /// Swaps a worker out: what it was before.
    fn worker_out(&self, control: &ControlClient, worker: &str) -> Result<Process, DemoError> {
        let looking = |source| DemoError::control(format!("look at {worker}"), source);
        let before = control.process_show(APPLICATION, worker).map_err(looking)?;
        let after = control
            .process_swap(APPLICATION, worker)
            .map_err(|source| DemoError::control(format!("swap {worker} out"), source))?;
        if after.state != ProcessState::Swapped {
            return Err(DemoError::odd("was swapped out", &after));
        }
        let text = format!(
            "{worker} is swapped out, with its partition, its labels and a message: generation {}",
            after.swap_generation
        );
        self.show.note(&text);
        Ok(before)
    }

    /// Looks whether a worker that was swapped out has come back by being invoked.
    fn worker_back(&self, control: &ControlClient, before: &Process) -> Result<(), DemoError> {
        let name = &before.name;
        let after = control
            .process_show(APPLICATION, name)
            .map_err(|source| DemoError::control(format!("look at {name}"), source))?;
        if after.state != ProcessState::Ready || after.incarnation <= before.incarnation {
            return Err(DemoError::odd("was invoked", &after));
        }
        let text = format!(
            "{name} is back by being invoked: incarnation {} instead of {}, process {} instead of \
             {}",
            after.incarnation,
            before.incarnation,
            after.pid.unwrap_or_default(),
            before.pid.unwrap_or_default()
        );
        self.show.note(&text);
        Ok(())
    }

    fn latency(&mut self) -> Result<Vec<Record>, DemoError> {
        if self.options.latency_ms == 0 {
            return Ok(Vec::new());
        }
        let plan = Plan {
            transports: LATENCY_TRANSPORTS.to_vec(),
            bytes: LATENCY_BYTES.to_vec(),
            per_measure: Duration::from_millis(self.options.latency_ms),
            ..Plan::new(Bench::Latency)
        };
        let total = plan.transports.len() * plan.whats.len() * plan.bytes.len();
        self.show.begin("measuring latencies", Some(total as u64));
        let mut done = 0;
        let show = &self.show;
        let records = bench_measure(&plan, |setting, records| {
            done += records.len() as u64;
            let bytes = records.first().map_or(0, |record| record.bytes);
            show.step(done, &format!("{}, {bytes} bytes", setting.transport));
            Ok(())
        });
        records.map_err(DemoError::Bench)
    }
}

/// Where the worker is that is swapped out meanwhile.
enum Away {
    /// In storage; what it was before.
    Out(Box<Process>),
    /// Here again.
    Back,
}

fn progress_text(progress: &Progress, points: u64) -> String {
    format!(
        "iteration {}: {} of {points} points changed their centre, inertia {:.1}",
        progress.iterations, progress.changed, progress.inertia
    )
}
