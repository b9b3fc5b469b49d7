//! The checker on real processes: clients write their histories down while hosts are killed and
//! swapped out. `PRAAS_CHECKER_SECONDS` says for how long (1200 in the soak lane).

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use praas_runtime::client::{Client, Directory};
use praas_runtime::host::{FromHost, ToHost};
use praas_tests::checker::{
    Action, COUNT, End, Event, Image, Outcome, Promise, Recorder, Reply, call, check,
};
use praas_tests::lab::{Lab, LabHost};
use praas_transport::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use praas_transport::{Credential, TransportKind};

const PROCESS: &str = "p";
const CLIENTS: u64 = 3;
/// How long one history gets before it is checked.
const ROUND: Duration = Duration::from_secs(1);
/// Transports that clients use, in one history after the other.
const KINDS: [TransportKind; 2] = [TransportKind::Shm, TransportKind::Tcp];

fn seconds() -> u64 {
    let asked = std::env::var("PRAAS_CHECKER_SECONDS");
    asked.map_or(2, |text| {
        text.parse().expect("PRAAS_CHECKER_SECONDS is a number")
    })
}

/// What clients and the killer share.
struct Shared {
    recorder: Recorder,
    numbers: AtomicU64,
    over: AtomicBool,
}

impl Shared {
    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// A client's loop.
fn calls(shared: &Shared, client: &mut Client, source: &str, random: &mut fastrand::Rng) {
    while !shared.over.load(Ordering::Relaxed) {
        let action = action(shared, source, random);
        one(shared, client, action);
    }
}

fn action(shared: &Shared, source: &str, random: &mut fastrand::Rng) -> Action {
    let key = format!("k{}", random.u8(..2));
    match random.u8(..11) {
        0 | 1 => Action::Read { key },
        2 | 3 => Action::Write {
            key,
            value: shared.number(),
        },
        8 => Action::Erase { key },
        9 | 10 => Action::Add {
            key: COUNT.into(),
            amount: 1,
        },
        4 | 5 => Action::Put {
            source: source.into(),
            key,
            message: shared.number(),
        },
        _ => Action::Take { source: None, key },
    }
}

/// Makes a call, and writes down how it went.
fn one(shared: &Shared, client: &mut Client, action: Action) {
    let numbered = (shared.number(), action);
    call(&shared.recorder, client, PROCESS, numbered);
}

/// The process's lives, one after the other.
struct Lives<'a> {
    lab: &'a Lab,
    shared: &'a Shared,
    incarnation: u64,
    generation: u64,
    /// Whether the last of them said that it ended as `generation`.
    swapped: bool,
    images: Vec<Image>,
}

impl Lives<'_> {
    fn image(&self, generation: u64) -> Option<Image> {
        let mut images = self.images.iter().rev();
        images.find(|image| image.generation == generation).copied()
    }

    fn start(&mut self) -> LabHost {
        let (mut incarnation, writer) = (0, self.incarnation);
        let swapped = std::mem::take(&mut self.swapped);
        let host = self.lab.start_with(PROCESS, |start| {
            if writer > 0 {
                start.life = 1;
            }
            start.swap_generation = self.generation;
            start.swapped = swapped;
            incarnation = start.incarnation;
        });
        let host = host.expect("it starts");
        assert_eq!(host.rejected, Vec::<String>::new());
        let from = host.swap_generation;
        if from > 0 && self.image(from).is_none() {
            // It was killed when the image was whole, and before it could say so.
            self.durable(Image {
                incarnation: writer,
                generation: from,
            });
        }
        self.shared.recorder.note(Event::Started {
            process: PROCESS.into(),
            incarnation,
            from: self.image(from),
        });
        (self.incarnation, self.generation) = (incarnation, from);
        host
    }

    fn durable(&mut self, image: Image) {
        self.images.push(image);
        let process = PROCESS.to_owned();
        self.shared.recorder.note(Event::Durable { process, image });
    }

    fn ended(&self, how: End) {
        self.shared.recorder.note(Event::Ended {
            process: PROCESS.into(),
            incarnation: self.incarnation,
            how,
        });
    }

    /// Has it take a checkpoint while it serves.
    fn checkpoint(&mut self, host: &mut LabHost) {
        self.shared.recorder.note(Event::Imaging {
            process: PROCESS.into(),
            incarnation: self.incarnation,
        });
        host.say(&ToHost::Checkpoint);
        let (generation, bytes) = match host.hear() {
            Some(FromHost::Checkpointed {
                generation, bytes, ..
            }) => (generation, bytes),
            other => panic!("the host says {other:?}, not Checkpointed"),
        };
        self.generation = generation;
        if bytes > 0 {
            self.durable(Image {
                incarnation: self.incarnation,
                generation,
            });
        }
    }

    /// Tells it to swap out, and kills it meanwhile if `kill` says so after that long.
    fn swap(&mut self, host: &mut LabHost, kill: Option<Duration>) {
        self.shared.recorder.note(Event::Imaging {
            process: PROCESS.into(),
            incarnation: self.incarnation,
        });
        host.say(&ToHost::SwapOut);
        if let Some(after) = kill {
            std::thread::park_timeout(after);
            if host.is_running() {
                host.kill();
            }
        }
        let swapped = match kill {
            None => Some(host.swapped().expect("storage is there")),
            Some(_) => match host.hear() {
                Some(FromHost::Swapped { generation, .. }) => Some(generation),
                _ => None,
            },
        };
        host.end_wait();
        let Some(generation) = swapped else {
            return self.ended(End::Crashed);
        };
        let image = Image {
            incarnation: self.incarnation,
            generation,
        };
        (self.generation, self.swapped) = (generation, true);
        self.durable(image);
        let process = PROCESS.to_owned();
        self.shared
            .recorder
            .note(Event::Committed { process, image });
        self.ended(End::Swapped);
    }
}

/// Clients call, and lives end, for a while; then all is looked at. Whether that could be decided.
fn round(kind: TransportKind, seed: u64) -> bool {
    let lab = Lab::new(env!("CARGO_BIN_EXE_praas"));
    let mut random = fastrand::Rng::with_seed(seed);
    let shared = Arc::new(Shared {
        recorder: Recorder::default(),
        numbers: AtomicU64::new(0),
        over: AtomicBool::new(false),
    });
    let mut lives = Lives {
        lab: &lab,
        shared: &shared,
        incarnation: 0,
        generation: 0,
        swapped: false,
        images: Vec::new(),
    };
    let mut host = lives.start();
    let clients: Vec<JoinHandle<Client>> = (1..=CLIENTS)
        .map(|number| client_start(&lab, kind, &shared, number, random.fork()))
        .collect();
    let until = Instant::now() + ROUND;
    while Instant::now() < until {
        std::thread::park_timeout(Duration::from_millis(random.u64(20..250)));
        if random.u8(..3) == 0 {
            lives.checkpoint(&mut host);
        }
        match random.u8(..10) {
            0..=3 => lives.swap(&mut host, None),
            4..=6 => {
                let after = Duration::from_micros(random.u64(..20_000));
                lives.swap(&mut host, Some(after));
            }
            _ => {
                host.kill();
                host.killed_wait();
                lives.ended(End::Crashed);
            }
        }
        host = lives.start();
    }
    shared.over.store(true, Ordering::Relaxed);
    let mut clients: Vec<Client> = clients
        .into_iter()
        .map(|client| client.join().expect("a client does not panic"))
        .collect();
    look(&shared, &mut clients[0]);
    let history = shared.recorder.history();
    let found = check(&history).into_iter();
    let (undecided, violations): (Vec<_>, Vec<_>) =
        found.partition(|found| found.promise == Promise::Undecided);
    assert!(
        violations.is_empty(),
        "seed {seed} over {kind}, {} events: {violations:#?}",
        history.events.len()
    );
    println!("{kind}, seed {seed}: {} events", history.events.len());
    for undecided in &undecided {
        println!("  {undecided}");
    }
    drop(host);
    undecided.is_empty()
}

fn client_start(
    lab: &Lab,
    kind: TransportKind,
    shared: &Arc<Shared>,
    number: u64,
    mut random: fastrand::Rng,
) -> JoinHandle<Client> {
    let mut config = lab.client_config(kind);
    config.directory = Directory::Agent(lab.directory().to_vec());
    let mut ticket = lab.ticket();
    ticket.client_id = number.into();
    config.credential = Credential::issue(lab.secret(), &ticket);
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        let mut client = Client::new(config).expect("a client");
        let source = format!("client:{number:032x}");
        calls(&shared, &mut client, &source, &mut random);
        client
    })
}

/// Reads all objects and takes all messages.
fn look(shared: &Shared, client: &mut Client) {
    let action = Action::Add {
        key: COUNT.into(),
        amount: 1,
    };
    one(shared, client, action);
    for key in ["k0", "k1"] {
        one(shared, client, Action::Read { key: key.into() });
        loop {
            let action = Action::Take {
                source: None,
                key: key.into(),
            };
            let before = shared.recorder.len();
            one(shared, client, action);
            let history = shared.recorder.history();
            let more = history.events[before..].iter().any(|event| {
                matches!(event, Event::Returned { outcome, .. }
                    if matches!(outcome, Outcome::Ok(Reply::Message(Some(_)))))
            });
            if !more {
                break;
            }
        }
    }
}

#[test]
fn histories_of_real_processes_are_as_promised() {
    let until = Instant::now() + Duration::from_secs(seconds());
    let mut seed = std::env::var("PRAAS_SEED").map_or_else(
        |_| fastrand::u64(..),
        |seed| seed.parse().expect("PRAAS_SEED is a number"),
    );
    let (mut histories, mut undecided) = (0, 0);
    // All of them, however long it takes.
    loop {
        for kind in KINDS {
            undecided += usize::from(!round(kind, seed));
            histories += 1;
            seed = seed.wrapping_add(1);
        }
        if Instant::now() >= until {
            break;
        }
    }
    println!("{histories} histories, of which {undecided} could not be decided");
    assert!(
        undecided <= 1 + histories / 50,
        "{undecided} of {histories} histories could not be decided"
    );
}
