//! Processes that serve before all of their state is back from storage.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use praas_runtime::client::{Client, ClientConfig, Directory};
use praas_runtime::directory::Resolved;
use praas_runtime::function::Registry;
use praas_runtime::invocation::InvokeError;
use praas_runtime::prelude::*;
use praas_runtime::process::{
    Process, ProcessConfig, ProcessSettings, Restore, STATE_GET, StartError,
};
use praas_runtime::swap::{
    Base, DirStorage, Heir, Storage, StorageError, SwapConfig, swap_in, swap_in_lazily,
};
use praas_transport::{
    BufPool, Credential, Incarnation, Keyring, Kinds, Listen, Role, Secret, Ticket, WaitMode,
};

/// Bytes of each large object.
const LARGE_BYTES: usize = 1 << 20;
const LARGE: usize = 6;
const PATIENCE: Duration = Duration::from_secs(60);

fn pattern(seed: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed as u64);
    let mut bytes = vec![0; LARGE_BYTES];
    random.fill(&mut bytes);
    bytes
}

fn name(number: usize) -> String {
    format!("large-{number}")
}

#[praas_runtime::function]
fn fills(context: &Context) -> Result<(), FunctionError> {
    for number in 0..LARGE {
        context.state_put(&name(number), &pattern(number))?;
    }
    context.state_put("small", b"small")?;
    Ok(())
}

#[praas_runtime::function]
fn small(context: &Context) -> Result<Vec<u8>, FunctionError> {
    let view = context.state_view("small")?;
    Ok(view.map(|view| view.to_vec()).unwrap_or_default())
}

/// The hash of an object, or what its call says.
#[praas_runtime::function]
fn hashes(context: &Context, key: String) -> Result<String, FunctionError> {
    Ok(match context.state_view(&key) {
        Ok(Some(view)) => blake3::hash(&view).to_string(),
        Ok(None) => "none".into(),
        Err(CallError::Corrupt(text)) => format!("corrupt: {text}"),
        Err(CallError::Unavailable(text)) => format!("unavailable: {text}"),
        Err(other) => return Err(other.into()),
    })
}

/// What works without an object's bytes.
#[praas_runtime::function]
fn lists(context: &Context) -> Result<Vec<(String, u64)>, FunctionError> {
    let list = context.state_list("", None, 100)?;
    Ok(list
        .into_iter()
        .map(|entry| (entry.key, entry.bytes))
        .collect())
}

#[praas_runtime::function]
fn appends(context: &Context, key: String) -> Result<u64, FunctionError> {
    Ok(context.state_append(&key, b"more")?)
}

#[praas_runtime::function]
fn replaces(context: &Context) -> Result<bool, FunctionError> {
    context.state_put(&name(1), b"new")?;
    Ok(context.state_delete(&name(2))?)
}

praas_runtime::module!(
    static "tests",
    [fills, small, hashes, lists, appends, replaces]
);

/// What reads of packs meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    /// They wait.
    Closed,
    /// They fail.
    Failing,
    /// They return other bytes.
    Flipping,
}

/// A storage whose reads can be held back.
struct Gated {
    storage: DirStorage,
    gate: Mutex<(Gate, u64)>,
    turned: Condvar,
}

impl Gated {
    fn turn(&self, gate: Gate) {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner).0 = gate;
        self.turned.notify_all();
    }

    /// Reads of packs so far.
    fn reads(&self) -> u64 {
        self.gate.lock().unwrap().1
    }
}

impl Storage for Gated {
    fn put_new(&self, name: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        self.storage.put_new(name, parts)
    }

    fn size(&self, name: &str) -> Result<u64, StorageError> {
        self.storage.size(name)
    }

    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        if !name.contains("/pack-") {
            return self.storage.read(name, offset, into);
        }
        let mut gate = self.gate.lock().unwrap();
        gate.1 += 1;
        while gate.0 == Gate::Closed {
            gate = self.turned.wait(gate).unwrap();
        }
        let gate = gate.0;
        self.storage.read(name, offset, into)?;
        match gate {
            Gate::Failing => Err(StorageError::Io {
                operation: "read",
                name: name.into(),
                source: std::io::Error::other("out of order"),
            }),
            Gate::Flipping => {
                into[0] ^= 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        self.storage.list(prefix)
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        self.storage.delete(name)
    }
}

struct Lab {
    secret: Secret,
    ring: Arc<Keyring>,
    gated: Arc<Gated>,
    _dir: tempfile::TempDir,
}

impl Lab {
    /// A process that was filled and swapped out.
    fn new() -> Self {
        let (secret, ring) = (Secret::generate().unwrap(), Arc::new(Keyring::new()));
        ring.insert("app", 1, secret.clone());
        let dir = tempfile::tempdir().unwrap();
        let gated = Gated {
            storage: DirStorage::new(dir.path()).unwrap(),
            gate: Mutex::new((Gate::Open, 0)),
            turned: Condvar::new(),
        };
        let lab = Self {
            secret,
            ring,
            gated: Arc::new(gated),
            _dir: dir,
        };
        let process = lab.start(1, Gate::Open);
        lab.client(&process).invoke("p", "fills", b"").unwrap();
        process
            .swap_out(&*lab.gated, &SwapConfig::default())
            .unwrap();
        lab
    }

    fn credential(&self, role: Role) -> Credential {
        let ticket = Ticket {
            application: "app".into(),
            role,
            client_id: 0,
            expires_unix_ms: u64::MAX,
            key_id: 1,
        };
        Credential::issue(&self.secret, &ticket)
    }

    /// As [`Lab::start`], and the process knows what of it is in storage.
    fn start_based(&self, incarnation: u64, gate: Gate) -> Process {
        let mut base = None;
        let process = self.start_telling(incarnation, gate, |loaded| base = Some(loaded));
        process.base_set(base.unwrap());
        process
    }

    /// Starts the process from storage; what it reads once it serves meets the gate.
    fn start(&self, incarnation: u64, gate: Gate) -> Process {
        self.start_telling(incarnation, gate, |_| {})
    }

    fn start_telling(&self, incarnation: u64, gate: Gate, tell: impl FnOnce(Base)) -> Process {
        let mut registry = Registry::new();
        registry.module_add(module()).unwrap();
        let config = ProcessConfig {
            application: "app".into(),
            process: "p".into(),
            incarnation: Incarnation(incarnation),
            listen: vec![Listen::Shm { name: None }],
            authenticator: Arc::clone(&self.ring) as _,
            credential: self.credential(Role::Process),
            directory: Directory::Fixed(BTreeMap::new()),
            transports: Kinds::all(),
            settings: ProcessSettings {
                workers: 2,
                wait: WaitMode::Warm,
                ..ProcessSettings::default()
            },
            registry,
            restore: None,
            persist: None,
        };
        let storage: Arc<dyn Storage> = Arc::clone(&self.gated) as _;
        let heir = Heir {
            incarnation: Incarnation(incarnation),
            life: Incarnation(0),
        };
        let started = Process::start_from(config, |pool| -> Result<_, StartError> {
            let loaded = swap_in_lazily(&storage, pool, ("app", "p"), heir, 1).unwrap();
            self.gated.turn(gate);
            Ok(loaded.map(|(loaded, absent)| {
                tell(loaded.base);
                let image = loaded.image;
                Restore {
                    image,
                    absent,
                    base: None,
                }
            }))
        });
        started.unwrap()
    }

    fn client(&self, process: &Process) -> Client {
        let resolved = Resolved {
            incarnation: process.identity().incarnation,
            addresses: process.addresses().to_vec(),
        };
        let directory = Directory::Fixed([("p".to_string(), resolved)].into());
        let mut config = ClientConfig::new(directory, self.credential(Role::Client));
        config.wait = WaitMode::Warm;
        Client::new(config).unwrap()
    }
}

fn hash(client: &mut Client, number: usize) -> String {
    client.invoke_value("p", "hashes", &name(number)).unwrap()
}

fn hash_expected(number: usize) -> String {
    blake3::hash(&pattern(number)).to_string()
}

fn absent_wait(process: &Process, count: usize) {
    let until = Instant::now() + PATIENCE;
    while process.state_absent() != count {
        assert!(
            Instant::now() < until,
            "{} are absent",
            process.state_absent()
        );
        std::thread::yield_now();
    }
}

#[test]
fn a_process_serves_before_its_state_is_back() {
    let lab = Lab::new();
    let process = lab.start(2, Gate::Closed);
    let mut client = lab.client(&process);
    assert_eq!(process.state_absent(), LARGE);
    let small = client.invoke("p", "small", b"").unwrap();
    assert_eq!(&small[..], b"small");
    let used = process.stats().state_bytes;
    assert!(used > (LARGE * LARGE_BYTES) as u64, "{used}");
    // Functions that want what is held back wait, more of them than there are workers, and others
    // go on.
    let waiting: Vec<_> = (0..4)
        .map(|number| {
            let mut client = lab.client(&process);
            std::thread::spawn(move || hash(&mut client, number % 2))
        })
        .collect();
    let until = Instant::now() + PATIENCE;
    while process.stats().blocked < 4 {
        assert!(Instant::now() < until, "{:?}", process.stats());
    }
    let list: Vec<(String, u64)> = client.invoke_value("p", "lists", &()).unwrap();
    assert_eq!(list.len(), LARGE + 1);
    assert_eq!(list[0], (name(0), LARGE_BYTES as u64));
    lab.gated.turn(Gate::Open);
    for (number, thread) in waiting.into_iter().enumerate() {
        assert_eq!(thread.join().unwrap(), hash_expected(number % 2));
    }
    // The rest comes by itself.
    absent_wait(&process, 0);
    for number in 0..LARGE {
        assert_eq!(hash(&mut client, number), hash_expected(number));
    }
}

#[test]
fn an_object_is_read_once_for_all() {
    let lab = Lab::new();
    let before = lab.gated.reads();
    let process = lab.start(2, Gate::Closed);
    let started = lab.gated.reads() - before;
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let mut client = lab.client(&process);
            std::thread::spawn(move || hash(&mut client, 5))
        })
        .collect();
    let until = Instant::now() + PATIENCE;
    while process.stats().blocked < 8 {
        assert!(Instant::now() < until, "{:?}", process.stats());
    }
    lab.gated.turn(Gate::Open);
    for thread in threads {
        assert_eq!(thread.join().unwrap(), hash_expected(5));
    }
    absent_wait(&process, 0);
    let reads = lab.gated.reads() - before - started;
    // An object of a mebibyte takes one read, or one for each pack that it lies in.
    assert!(reads <= 2 * LARGE as u64, "{reads} reads");
}

#[test]
fn what_is_absent_can_be_replaced_and_deleted() {
    let lab = Lab::new();
    let process = lab.start(2, Gate::Closed);
    let mut client = lab.client(&process);
    assert!(
        client
            .invoke_value::<_, bool>("p", "replaces", &())
            .unwrap()
    );
    assert_eq!(process.state_absent(), LARGE - 2);
    assert_eq!(hash(&mut client, 1), blake3::hash(b"new").to_string());
    assert_eq!(hash(&mut client, 2), "none");
    // What comes late is not put over it.
    lab.gated.turn(Gate::Open);
    absent_wait(&process, 0);
    assert_eq!(hash(&mut client, 1), blake3::hash(b"new").to_string());
    assert_eq!(hash(&mut client, 2), "none");
    let length: u64 = client.invoke_value("p", "appends", &name(3)).unwrap();
    assert_eq!(length, LARGE_BYTES as u64 + 4);
}

#[test]
fn appending_waits_for_what_is_there() {
    let lab = Lab::new();
    let process = lab.start(2, Gate::Closed);
    let mut appending = lab.client(&process);
    let thread = std::thread::spawn(move || {
        appending
            .invoke_value::<_, u64>("p", "appends", &name(4))
            .unwrap()
    });
    let until = Instant::now() + PATIENCE;
    while process.stats().blocked < 1 {
        assert!(Instant::now() < until, "{:?}", process.stats());
    }
    lab.gated.turn(Gate::Open);
    assert_eq!(thread.join().unwrap(), LARGE_BYTES as u64 + 4);
    let bytes = [pattern(4), b"more".to_vec()].concat();
    let mut client = lab.client(&process);
    assert_eq!(hash(&mut client, 4), blake3::hash(&bytes).to_string());
}

#[test]
fn a_storage_that_fails_is_an_error_until_it_works() {
    let lab = Lab::new();
    let process = lab.start(2, Gate::Failing);
    let mut client = lab.client(&process);
    let said = hash(&mut client, 0);
    assert!(said.starts_with("unavailable: "), "{said}");
    assert!(said.contains("out of order"), "{said}");
    let got = client.invoke("p", STATE_GET, name(1).as_bytes());
    assert!(matches!(got, Err(InvokeError::Function(_))), "{got:?}");
    let error = process.swap_out(&*lab.gated, &SwapConfig::default());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("cannot be had from storage"), "{error}");
    lab.gated.turn(Gate::Open);
    assert_eq!(hash(&mut client, 0), hash_expected(0));
    absent_wait(&process, 0);
    process
        .swap_out(&*lab.gated, &SwapConfig::default())
        .unwrap();
}

#[test]
fn a_damaged_object_is_an_error_and_never_other_bytes() {
    let lab = Lab::new();
    let process = lab.start(2, Gate::Flipping);
    let mut client = lab.client(&process);
    for _ in 0..2 {
        let said = hash(&mut client, 1);
        assert!(said.starts_with("corrupt: "), "{said}");
        assert!(said.contains("hash mismatch"), "{said}");
    }
    // It is there by its name, and can be written anew; the damage is not swapped out.
    let list: Vec<(String, u64)> = client.invoke_value("p", "lists", &()).unwrap();
    assert_eq!(list.len(), LARGE + 1);
    let error = process.swap_out(&*lab.gated, &SwapConfig::default());
    assert!(error.unwrap_err().to_string().contains("damaged"));
    client.invoke("p", "fills", b"").unwrap();
    assert_eq!(hash(&mut client, 1), hash_expected(1));
    process
        .swap_out(&*lab.gated, &SwapConfig::default())
        .unwrap();
}

#[test]
fn a_swap_or_a_checkpoint_has_what_was_absent() {
    let lab = Lab::new();
    let process = lab.start(2, Gate::Closed);
    let gated = Arc::clone(&lab.gated);
    std::thread::scope(|scope| {
        let checkpoint = scope.spawn(|| process.checkpoint(&*gated, &SwapConfig::default()));
        gated.turn(Gate::Open);
        checkpoint.join().unwrap().unwrap();
    });
    let whole = || {
        let pool = BufPool::new(1 << 30);
        let loaded = swap_in(&*lab.gated, &pool, "app", "p").unwrap().unwrap();
        assert_eq!(loaded.image.state.len(), LARGE + 1);
        for (number, (_, bytes, _)) in loaded.image.state[..LARGE].iter().enumerate() {
            assert!(**bytes == pattern(number)[..], "object {number} is another");
        }
    };
    whole();
    drop(process);
    let process = lab.start(3, Gate::Open);
    process
        .swap_out(&*lab.gated, &SwapConfig::default())
        .unwrap();
    whole();
}

/// A process that was just swapped in, and is swapped out, reads nothing and writes next to
/// nothing.
#[test]
fn what_was_not_fetched_is_not_for_a_swap_either() {
    let lab = Lab::new();
    let process = lab.start_based(2, Gate::Closed);
    let mut client = lab.client(&process);
    client.invoke("p", "replaces", b"").unwrap();
    // Fetchers may have begun; nobody gets further.
    let committed = process
        .swap_out(&*lab.gated, &SwapConfig::default())
        .unwrap();
    assert!(committed.bytes < 10_000, "{committed:?}");
    assert!(committed.bytes_reused >= ((LARGE - 2) * LARGE_BYTES) as u64);
    lab.gated.turn(Gate::Open);
    let pool = BufPool::new(1 << 30);
    let loaded = swap_in(&*lab.gated, &pool, "app", "p").unwrap().unwrap();
    let state = loaded.image.state.iter();
    let state: BTreeMap<_, _> = state.map(|(key, buf, _)| (&**key, &buf[..])).collect();
    for number in [0, 3, 4, 5] {
        assert!(*state[&*name(number)] == pattern(number)[..], "{number}");
    }
    assert_eq!(state[&*name(1)], b"new");
    assert!(!state.contains_key(&*name(2)));
}

/// Commits delete no packs that are still to be read.
#[test]
fn what_is_fetched_after_many_commits_is_still_there() {
    let lab = Lab::new();
    let process = lab.start_based(2, Gate::Closed);
    let mut client = lab.client(&process);
    for _ in 0..5 {
        let _: bool = client.invoke_value("p", "replaces", &()).unwrap();
        process
            .checkpoint(&*lab.gated, &SwapConfig::default())
            .unwrap();
        assert_eq!(process.state_absent(), LARGE - 2);
    }
    lab.gated.turn(Gate::Open);
    absent_wait(&process, 0);
    for number in [0, 3, 4, 5] {
        assert_eq!(hash(&mut client, number), hash_expected(number));
    }
}

#[test]
fn what_is_known_to_be_damaged_is_not_swapped_out_unread() {
    let lab = Lab::new();
    let process = lab.start_based(2, Gate::Flipping);
    let mut client = lab.client(&process);
    let said = hash(&mut client, 1);
    assert!(said.starts_with("corrupt: "), "{said}");
    let error = process.swap_out(&*lab.gated, &SwapConfig::default());
    assert!(error.unwrap_err().to_string().contains("damaged"));
}
