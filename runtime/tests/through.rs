//! Objects that are written through: durable at once, whatever becomes of the process.

mod alone;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use alone::Keys;
use praas_runtime::client::{CallOptions, Client};
use praas_runtime::invocation::InvokeError;
use praas_runtime::prelude::*;
use praas_runtime::process::{
    Bound, PersistTo, Process, PullFrom, Restore, STATE_PERSIST, STATE_PUT, StatePutInput,
    TransferOffer,
};
use praas_runtime::swap::{
    Committed, DirStorage, Heir, ImageKind, Storage, StorageError, SwapConfig, SwapError, swap_in,
    swap_in_lazily, swap_out,
};
use praas_transport::wire::Incarnation;
use praas_transport::{BufPool, StatsPage};

#[praas_runtime::function]
fn put(context: &Context, (key, value): (String, Vec<u8>)) -> Result<u64, FunctionError> {
    Ok(context.state_put(&key, &value)?)
}

#[praas_runtime::function]
fn put_persist(context: &Context, (key, value): (String, Vec<u8>)) -> Result<u64, FunctionError> {
    Ok(context.state_put_persist(&key, &value)?)
}

#[praas_runtime::function]
fn persist(context: &Context, key: String) -> Result<u64, FunctionError> {
    Ok(context.state_persist(&key)?)
}

#[praas_runtime::function]
fn delete(context: &Context, key: String) -> Result<bool, FunctionError> {
    Ok(context.state_delete(&key)?)
}

/// What a persist says.
#[praas_runtime::function]
fn persist_says(context: &Context, key: String) -> Result<String, FunctionError> {
    Ok(match context.state_persist(&key) {
        Ok(version) => format!("version {version}"),
        Err(CallError::Unavailable(text)) => format!("unavailable: {text}"),
        Err(CallError::Forbidden(text)) => format!("forbidden: {text}"),
        Err(CallError::LimitReached(text)) => format!("limit: {text}"),
        Err(CallError::BadArgument(text)) => format!("bad: {text}"),
        Err(CallError::Exhausted(text)) => format!("exhausted: {text}"),
        Err(CallError::DeadlineExceeded) => "deadline".into(),
        Err(other) => return Err(other.into()),
    })
}

#[praas_runtime::function(short)]
fn persist_short(context: &Context, key: String) -> Result<String, FunctionError> {
    let own = context.state_persist(&key).unwrap_err().to_string();
    let other = context.invoke("", STATE_PERSIST, key.as_bytes());
    Ok(format!("{own}; {}", other.unwrap_err()))
}

/// What a persist says within some milliseconds, by itself or by the function that every process has.
#[praas_runtime::function]
fn persist_within(
    context: &Context,
    (key, invoked): (String, bool),
) -> Result<String, FunctionError> {
    let timeout = std::time::Duration::from_millis(10);
    let invoke = || context.invoke_within("", STATE_PERSIST, key.as_bytes(), timeout);
    let outcome = match invoked {
        true => invoke().map(drop),
        false => context.state_persist_within(&key, timeout).map(drop),
    };
    Ok(match outcome {
        Err(CallError::DeadlineExceeded) => "deadline".into(),
        other => format!("{other:?}"),
    })
}

/// All objects.
#[praas_runtime::function]
fn all(context: &Context) -> Result<BTreeMap<String, Vec<u8>>, FunctionError> {
    let mut all = BTreeMap::new();
    for entry in context.state_list("", None, 1000)? {
        let value = context.state_get(&entry.key)?.unwrap_or_default();
        all.insert(entry.key, value);
    }
    Ok(all)
}

praas_runtime::module!(
    static "tests",
    [
        put,
        put_persist,
        persist,
        delete,
        persist_says,
        persist_short,
        persist_within,
        all
    ]
);

/// What is done to a storage's objects of one kind, by what their names have in them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    Closed,
    Full,
}

struct Gated {
    inner: DirStorage,
    gate: Mutex<Gate>,
    turned: Condvar,
    /// What was created.
    created: Mutex<Vec<String>>,
}

impl Gated {
    fn turn(&self, gate: Gate) {
        *self.gate.lock().unwrap() = gate;
        self.turned.notify_all();
    }

    fn created(&self, what: &str) -> usize {
        let created = self.created.lock().unwrap();
        created.iter().filter(|name| name.contains(what)).count()
    }
}

impl Storage for Gated {
    fn put_new(&self, name: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        self.created.lock().unwrap().push(name.into());
        if name.contains("/through-") {
            let mut gate = self.gate.lock().unwrap();
            while *gate == Gate::Closed {
                gate = self.turned.wait(gate).unwrap();
            }
            if *gate == Gate::Full {
                return Err(StorageError::Full {
                    operation: "write",
                    name: name.into(),
                    source: std::io::ErrorKind::StorageFull.into(),
                });
            }
        }
        self.inner.put_new(name, parts)
    }

    fn size(&self, name: &str) -> Result<u64, StorageError> {
        self.inner.size(name)
    }

    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        self.inner.read(name, offset, into)
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        self.inner.list(prefix)
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        self.inner.delete(name)
    }
}

struct Lab {
    keys: Keys,
    storage: Arc<Gated>,
    /// Generations of checkpoints that were told of.
    told: Arc<Mutex<Vec<u64>>>,
    folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let storage = Gated {
            inner: DirStorage::new(folder.path()).unwrap(),
            gate: Mutex::new(Gate::Open),
            turned: Condvar::new(),
            created: Mutex::default(),
        };
        Self {
            keys: Keys::new(),
            storage: Arc::new(storage),
            told: Arc::default(),
            folder,
        }
    }

    fn persist_to(&self) -> PersistTo {
        let told = Arc::clone(&self.told);
        let note = move |committed: &Committed| told.lock().unwrap().push(committed.generation);
        PersistTo {
            storage: Arc::clone(&self.storage) as _,
            config: SwapConfig::default(),
            checkpointed: Box::new(note),
        }
    }

    /// A life of the process, from what is stored; objects are left for later from `lazy` bytes on.
    fn life(&self, incarnation: u64, lazy: u64) -> (Process, Client) {
        let storage: Arc<dyn Storage> = Arc::clone(&self.storage) as _;
        let process =
            self.keys
                .start_with(incarnation, module(), Some(self.persist_to()), |pool| {
                    let heir = Heir {
                        incarnation: Incarnation(incarnation),
                        life: Incarnation(0),
                    };
                    let loaded = swap_in_lazily(&storage, pool, ("app", "p"), heir, lazy).unwrap();
                    loaded.map(|(loaded, absent)| Restore {
                        image: loaded.image,
                        absent,
                        base: Some(loaded.base),
                    })
                });
        let client = self.keys.client(&process);
        (process, client)
    }

    fn names(&self, what: &str) -> Vec<String> {
        let names = self.storage.list("app/p/").unwrap();
        let mut names: Vec<_> = names
            .into_iter()
            .filter(|name| name.contains(what))
            .collect();
        names.sort();
        names
    }

    /// What is superseded goes after whoever wrote is answered.
    fn names_wait(&self, what: &str, count: usize) {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while self.names(what).len() != count {
            let names = self.names(what);
            assert!(std::time::Instant::now() < until, "{count} are {names:?}");
            std::thread::yield_now();
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        Path::new(self.folder.path()).join(name)
    }
}

fn value(client: &mut Client, function: &str, key: &str, value: &[u8]) -> u64 {
    let input = (key.to_string(), value.to_vec());
    client.invoke_value("p", function, &input).unwrap()
}

fn persisted(client: &mut Client, key: &str) -> u64 {
    client
        .invoke_value("p", "persist", &key.to_string())
        .unwrap()
}

fn said(client: &mut Client, key: &str) -> String {
    client
        .invoke_value("p", "persist_says", &key.to_string())
        .unwrap()
}

fn deleted(client: &mut Client, key: &str) {
    let _: bool = client
        .invoke_value("p", "delete", &key.to_string())
        .unwrap();
}

fn state(client: &mut Client) -> BTreeMap<String, Vec<u8>> {
    client.invoke_value("p", "all", &()).unwrap()
}

fn expected(objects: &[(&str, &[u8])]) -> BTreeMap<String, Vec<u8>> {
    let objects = objects.iter();
    objects
        .map(|(key, value)| (key.to_string(), value.to_vec()))
        .collect()
}

const EAGER: u64 = u64::MAX;

#[test]
fn what_is_written_through_outlives_a_crash_and_the_rest_goes_back() {
    let lab = Lab::new();
    let (process, mut client) = lab.life(1, EAGER);
    value(&mut client, "put", "before", b"1");
    let version = value(&mut client, "put_persist", "a", b"1");
    // The first one needs an image.
    assert_eq!(*lab.told.lock().unwrap(), [1]);
    value(&mut client, "put", "after", b"1");
    value(&mut client, "put", "before", b"2");
    assert!(value(&mut client, "put_persist", "a", b"2") > version);
    value(&mut client, "put_persist", "gone", b"1");
    deleted(&mut client, "gone");
    assert_eq!(persisted(&mut client, "gone"), 0);
    // Deleted for good, or not.
    value(&mut client, "put_persist", "back", b"1");
    deleted(&mut client, "back");
    // In no more files than may be: one more, and there would be a checkpoint.
    value(&mut client, "put_persist", "odd / \0 ~ key", b"");
    lab.names_wait("through-", 4);
    value(&mut client, "put", "a", b"3");
    drop((process, client));
    for lazy in [EAGER, 0, EAGER] {
        let incarnation = 2 + lab.storage.created("writer-") as u64;
        let (process, mut client) = lab.life(incarnation, lazy);
        let expected = expected(&[
            ("a", b"2"),
            ("back", b"1"),
            ("before", b"1"),
            ("odd / \0 ~ key", b""),
        ]);
        assert_eq!(state(&mut client), expected);
        drop((process, client));
    }
}

#[test]
fn what_is_written_after_an_image_is_newer_than_all_that_it_covers() {
    let lab = Lab::new();
    let (process, mut client) = lab.life(1, EAGER);
    value(&mut client, "put_persist", "a", b"1");
    drop((process, client));
    // As if much had been written there and deleted, or the clock had been far ahead.
    let pool = BufPool::new(1 << 24);
    let loaded = swap_in(&*lab.storage, &pool, "app", "p").unwrap();
    let mut image = loaded.unwrap().image;
    image.state_version = u64::MAX / 4;
    swap_out(&*lab.storage, &image, &SwapConfig::default()).unwrap();

    let (process, mut client) = lab.life(2, EAGER);
    for written in [b"2", b"3"] {
        let version = value(&mut client, "put_persist", "a", written);
        assert!(version > image.state_version, "{version}");
        value(&mut client, "put_persist", "b", written);
    }
    drop((process, client));
    let (_process, mut client) = lab.life(3, EAGER);
    assert_eq!(state(&mut client), expected(&[("a", b"3"), ("b", b"3")]));
}

#[test]
fn what_is_durable_already_is_not_written_again() {
    let lab = Lab::new();
    let (process, mut client) = lab.life(1, EAGER);
    value(&mut client, "put", "a", b"1");
    let version = persisted(&mut client, "a");
    // It is in the checkpoint that the first one takes.
    assert_eq!((lab.storage.created("through-"), version & 0xff), (0, 1));
    value(&mut client, "put", "a", b"2");
    assert!(persisted(&mut client, "a") > version);
    persisted(&mut client, "a");
    assert_eq!(lab.storage.created("through-"), 1);
    assert_eq!(persisted(&mut client, "none"), 0);
    assert_eq!(persisted(&mut client, "none"), 0);
    assert_eq!(lab.storage.created("through-"), 2);
    // One that was superseded goes.
    value(&mut client, "put_persist", "a", b"3");
    lab.names_wait("through-", 2);
    process
        .checkpoint(&*lab.storage, &SwapConfig::default())
        .unwrap();
    persisted(&mut client, "a");
    assert_eq!(lab.storage.created("through-"), 3);
    // The generation before may still be begun with; the one before that is gone.
    lab.names_wait("through-", 2);
    value(&mut client, "put", "a", b"4");
    let last = process.swap_out(&*lab.storage, &SwapConfig::default());
    assert_eq!(last.unwrap().generation, 3);
    assert!(lab.names("through-").is_empty() && lab.names("writer-").is_empty());
    let (_process, mut client) = lab.life(2, EAGER);
    assert_eq!(state(&mut client), expected(&[("a", b"4")]));
    assert!(lab.names("writer-").is_empty(), "nothing to take over");
}

/// An object that is deleted, which is not written through, is in no later image, and does not come
/// back with what was written through before it.
#[test]
fn an_image_wins_over_what_was_written_through_before_it() {
    let lab = Lab::new();
    let (process, mut client) = lab.life(1, EAGER);
    value(&mut client, "put_persist", "first", b"");
    for (key, bytes) in [("deleted", b"1"), ("changed", b"1"), ("same", b"1")] {
        value(&mut client, "put_persist", key, bytes);
    }
    deleted(&mut client, "deleted");
    value(&mut client, "put", "changed", b"2");
    process
        .checkpoint(&*lab.storage, &SwapConfig::default())
        .unwrap();
    lab.names_wait("through-", 3);
    drop((process, client));
    let (process, mut client) = lab.life(2, EAGER);
    let now = expected(&[("changed", b"2"), ("first", b""), ("same", b"1")]);
    assert_eq!(state(&mut client), now);
    drop((process, client));
    // Should the newest image be damaged, the one before it and what came after that are there.
    let newest = lab.path(lab.names("manifest-").last().unwrap());
    std::fs::write(newest, b"").unwrap();
    let (_process, mut client) = lab.life(3, EAGER);
    let before = expected(&[
        ("changed", b"1"),
        ("deleted", b"1"),
        ("first", b""),
        ("same", b"1"),
    ]);
    assert_eq!(state(&mut client), before);
}

#[test]
fn an_incarnation_that_others_took_for_dead_is_told_so() {
    let lab = Lab::new();
    let (_old, mut old_client) = lab.life(1, EAGER);
    value(&mut old_client, "put_persist", "a", b"1");
    value(&mut old_client, "put_persist", "b", b"1");
    let (new, mut new_client) = lab.life(2, EAGER);
    // The old one goes on, and is refused, now and later.
    value(&mut old_client, "put", "b", b"old");
    for _ in 0..2 {
        let said = said(&mut old_client, "b");
        assert!(said.starts_with("forbidden: incarnation 1 "), "{said}");
    }
    value(&mut new_client, "put_persist", "b", b"2");
    // What the old one has put there all the same does not count.
    drop((new, new_client));
    let (_next, mut client) = lab.life(3, EAGER);
    assert_eq!(state(&mut client), expected(&[("a", b"1"), ("b", b"2")]));
    // Its images are refused, too.
    let image = swap_in(&*lab.storage, &BufPool::new(1 << 24), "app", "p");
    let mut image = image.unwrap().unwrap().image;
    image.incarnation = Incarnation(2);
    let refused = swap_out(&*lab.storage, &image, &SwapConfig::default()).unwrap_err();
    assert!(matches!(refused, SwapError::Fenced { .. }), "{refused}");
}

#[test]
fn what_storage_says_is_told() {
    let lab = Lab::new();
    let (process, mut client) = lab.life(1, EAGER);
    value(&mut client, "put_persist", "a", b"1");
    lab.storage.turn(Gate::Full);
    value(&mut client, "put", "a", b"2");
    let told = said(&mut client, "a");
    assert!(
        told.starts_with("unavailable: ") && told.contains("no room left"),
        "{told}"
    );
    lab.storage.turn(Gate::Open);
    assert!(said(&mut client, "a").starts_with("version "));
    assert!(said(&mut client, "").starts_with("bad: "));
    value(&mut client, "put", "large", &vec![0; (1 << 20) + 1]);
    let told = said(&mut client, "large");
    assert!(
        told.starts_with("limit: ") && told.contains("persist_max_bytes"),
        "{told}"
    );
    let told: String = client
        .invoke_value("p", "persist_short", &"a".to_string())
        .unwrap();
    assert_eq!(told.matches("marked short").count(), 2, "{told}");
    let stats = process.stats();
    // The first is in the checkpoint that it had to take.
    assert_eq!((stats.persisted_objects, stats.persisted_bytes), (1, 1));
    assert_eq!((stats.persist_groups, stats.persist_failures), (2, 2));
    let none = lab.keys.start(9, module(), None);
    let told = said(&mut lab.keys.client(&none), "a");
    assert!(told.starts_with("unavailable: "), "{told}");
}

#[test]
fn many_at_once_go_together_and_others_are_served_meanwhile() {
    let lab = Lab::new();
    let (_process, mut client) = lab.life(1, EAGER);
    value(&mut client, "put_persist", "first", b"");
    lab.storage.turn(Gate::Closed);
    std::thread::scope(|scope| {
        let mut waiting = Vec::new();
        for number in 0..8_u8 {
            let mut client = lab.keys.client(&_process);
            waiting.push(scope.spawn(move || {
                let key = format!("k{}", number / 2);
                value(&mut client, "put_persist", &key, &[number])
            }));
        }
        // More than there are workers wait, and the process serves.
        while _process.stats().blocked < 8 {
            let _ = state(&mut client);
        }
        let options = CallOptions {
            deadline: Some(std::time::Instant::now() + std::time::Duration::from_millis(30)),
            ..CallOptions::default()
        };
        let persist = client.function("p", "persist").unwrap();
        let input = praas_runtime::codec::encode("k0").unwrap();
        let late = client.call(persist, &input, options);
        assert!(
            matches!(late, Err(InvokeError::DeadlineExceeded)),
            "{late:?}"
        );
        lab.storage.turn(Gate::Open);
        for waiting in waiting {
            assert!(waiting.join().unwrap() > 0);
        }
    });
    // The one that was held up, and one with all others.
    assert!(lab.storage.created("through-") <= 3);
    let now = state(&mut client);
    drop((_process, client));
    let (_process, mut client) = lab.life(2, EAGER);
    assert_eq!(state(&mut client), now);
}

/// The function that every process has is cancelled like others, while storage does not answer.
#[test]
fn whoever_waits_for_storage_can_be_cancelled() {
    let lab = Lab::new();
    let (process, mut client) = lab.life(1, EAGER);
    value(&mut client, "put_persist", "first", b"");
    value(&mut client, "put", "a", b"");
    let idle = process.stats().blocked;
    lab.storage.turn(Gate::Closed);
    let persist = client.function("p", STATE_PERSIST).unwrap();
    let call = client.submit(persist, b"a", CallOptions::default());
    let call = call.unwrap();
    while process.stats().blocked == idle {
        state(&mut client);
    }
    client.cancel(call);
    assert_eq!(client.wait(call).err(), Some(InvokeError::Cancelled));
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while process.stats().blocked > idle {
        assert!(std::time::Instant::now() < until, "it waits on");
        state(&mut client);
    }
    lab.storage.turn(Gate::Open);
    assert!(persisted(&mut client, "a") > 0);
}

/// Neither memory nor storage is for those who are gone.
#[test]
fn who_waits_no_more_for_storage_leaves_nothing_behind() {
    let lab = Lab::new();
    let (_process, mut client) = lab.life(1, EAGER);
    value(&mut client, "put_persist", "first", b"");
    value(&mut client, "put", "a", b"");
    lab.storage.turn(Gate::Closed);
    let persist = client.function("p", STATE_PERSIST).unwrap();
    let held_up = client
        .submit(persist, b"a", CallOptions::default())
        .unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while lab.storage.created("/through-") == 0 {
        assert!(std::time::Instant::now() < until, "nothing is written");
        state(&mut client);
    }
    // A storage that stalls holds a function up for as long as that may wait, and its caller says.
    for number in 0..10 {
        let key = format!("gone{number}");
        value(&mut client, "put", &key, b"");
        let options = CallOptions {
            deadline: Some(std::time::Instant::now() + std::time::Duration::from_secs(20)),
            ..CallOptions::default()
        };
        let function = client.function("p", "persist_within").unwrap();
        let input = praas_runtime::codec::encode(&(key, number % 2 == 0)).unwrap();
        let told = client.call(function, &input, options).unwrap();
        assert_eq!(
            told.to_vec(),
            praas_runtime::codec::encode("deadline").unwrap()
        );
    }
    lab.storage.turn(Gate::Open);
    client.wait(held_up).unwrap();
    value(&mut client, "put_persist", "last", b"");
    let through = lab.storage.created("/through-");
    assert_eq!(through, 2, "of a and the last; the first is in an image");
}

#[test]
fn damage_is_found_and_what_was_cut_off_is_left_out() {
    let lab = Lab::new();
    let (process, mut client) = lab.life(1, EAGER);
    value(&mut client, "put_persist", "a", b"image");
    let mut version = 0;
    for at in 0..3 {
        version = value(
            &mut client,
            "put_persist",
            &format!("a{at}"),
            &vec![at; 70_000],
        );
    }
    drop((process, client));
    let names = lab.names("through-");
    assert_eq!(names.len(), 3);
    let load = || {
        let pool = BufPool::new(1 << 24);
        let loaded = swap_in(&*lab.storage, &pool, "app", "p").unwrap().unwrap();
        let keys = loaded.image.state.iter().map(|(key, ..)| key.clone());
        let mut keys: Vec<_> = keys.collect();
        keys.sort();
        let rejected = loaded.rejected.iter().map(ToString::to_string);
        assert_eq!(loaded.image.kind, ImageKind::Checkpoint);
        (keys.join(" "), rejected.collect::<Vec<_>>().join(" "))
    };
    assert_eq!(load(), ("a a0 a1 a2".into(), String::new()));
    // Of the last one, a part is there: nobody was told that it is.
    let path = lab.path(&names[2]);
    let bytes = std::fs::read(&path).unwrap();
    for length in [0, 1, 47, 48, 100, 200, 50_000, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert_eq!(load(), ("a a0 a1".into(), String::new()), "{length}");
    }
    for at in [0, 8, 13, 20, 60, 130, 180, 60_000] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        let (keys, rejected) = load();
        assert_eq!(keys, "a a0 a1", "{at}");
        assert!(rejected.contains(&names[2]), "{at}: {rejected}");
    }
    // What is read later is found to be damaged later.
    let (_process, mut client) = lab.life(2, 1);
    let mut input = ("a2".to_string(), Vec::<u8>::new());
    let lost = client.invoke("p", "praas.state.get", b"a2").unwrap_err();
    assert!(lost.to_string().contains("damaged in storage"), "{lost}");
    input.1 = b"again".to_vec();
    assert!(value(&mut client, "put_persist", &input.0, &input.1) > version);
    drop((_process, client));
    let (_process, mut client) = lab.life(3, EAGER);
    assert_eq!(state(&mut client)["a2"], b"again");
}

#[test]
fn too_many_files_become_an_image() {
    let lab = Lab::new();
    let (_process, mut client) = lab.life(1, EAGER);
    for at in 0..30 {
        value(&mut client, "put_persist", &format!("k{at}"), &[at]);
        assert!(lab.names("through-").len() <= 12, "{at}");
    }
    assert!(lab.told.lock().unwrap().len() > 4);
    let now = state(&mut client);
    drop((_process, client));
    let (_process, mut client) = lab.life(2, EAGER);
    assert_eq!((now.len(), state(&mut client)), (30, now));
    // By a client alone.
    let put = StatePutInput {
        key: "k1".into(),
        value: b"client".to_vec(),
    };
    let put: u64 = client.invoke_value("p", STATE_PUT, &put).unwrap();
    let durable = client.invoke("p", STATE_PERSIST, b"k1").unwrap();
    assert_eq!(praas_runtime::codec::decode::<u64>(&durable).unwrap(), put);
    drop((_process, client));
    let (_process, mut client) = lab.life(3, 1);
    assert_eq!(state(&mut client)["k1"], b"client");
}

/// A transfer takes everything along; what was written through before it stays where it is, and
/// what is written through after it is of the new host alone.
#[test]
fn a_transfer_leaves_it_where_it_is() {
    for writes in [false, true] {
        let lab = Lab::new();
        let (old, mut client) = lab.life(1, EAGER);
        value(&mut client, "put", "plain", b"1");
        value(&mut client, "put_persist", "first", b"");
        value(&mut client, "put_persist", "a", b"1");
        value(&mut client, "put", "plain", b"2");
        let mut config = lab.keys.config(2, module());
        config.persist = Some(lab.persist_to());
        let mut bound = Bound::new(config, Arc::new(StatsPage::private())).unwrap();
        let offer = TransferOffer {
            incarnation: Incarnation(2),
            token: [7; 16],
        };
        let (offered, heard) = std::sync::mpsc::channel();
        let image = std::thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let counts = old.transfer_out(offer, |step| offered.send(step).unwrap());
                counts.unwrap();
            });
            heard.recv().unwrap();
            let from = PullFrom {
                addresses: old.addresses().to_vec(),
                incarnation: Incarnation(1),
                token: [7; 16],
            };
            let image = bound.pull(&from, || false).unwrap();
            sending.join().unwrap();
            image
        });
        drop((old, client));
        let new = bound.prepare(image).unwrap().serve().unwrap();
        let mut client = lab.keys.client(&new);
        let (a, plain) = match writes {
            false => (b"1", b"1"),
            true => {
                // The first one takes a checkpoint, which has what came with the transfer.
                value(&mut client, "put_persist", "first", b"");
                value(&mut client, "put_persist", "a", b"2");
                value(&mut client, "put", "plain", b"3");
                assert_eq!(*lab.told.lock().unwrap(), [1, 2]);
                let right = lab.names("writer-");
                assert_eq!(right, ["app/p/writer-0000000000000002"]);
                (b"2", b"2")
            }
        };
        drop((new, client));
        let (_process, mut client) = lab.life(3, EAGER);
        let there = expected(&[("a", a), ("first", b""), ("plain", plain)]);
        assert_eq!(state(&mut client), there, "{writes}");
    }
}
