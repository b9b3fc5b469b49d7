//! Real hosts that swap to servers: a whole life, and a server that is lost in the middle of a swap.
//! What cannot be had here is skipped; `.ci/run storage` requires it.

use praas_cluster::run_dir::RunDir;
use praas_cluster::session::Session;
use praas_runtime::client::Client;
use praas_runtime::process::{STATE_GET, STATE_PUT, StatePutInput};
use praas_tests::cluster_lab::{Lab, kill};
use praas_tests::storages::{self, Cut, Kind};
use praas_transport::Kinds;

/// State that takes a while, and is fetched after the process serves.
const LARGE_BYTES: usize = 8 << 20;
/// Of it, what reaches the server before that is lost.
const REACHES_BYTES: u64 = 1 << 20;

fn count(client: &mut Client) -> u64 {
    client.invoke_value("p", "count", &1_u64).expect("a sum")
}

/// Writes an object of random bytes, which are returned.
fn large_put(client: &mut Client, seed: u64) -> Vec<u8> {
    let mut value = vec![0; LARGE_BYTES];
    fastrand::Rng::with_seed(seed).fill(&mut value);
    let input = StatePutInput {
        key: "large".into(),
        value,
    };
    let stored = client.invoke_value::<_, u64>("p", STATE_PUT, &input);
    stored.expect("a version");
    input.value
}

fn a_process_lives_there(storage: &storages::Lab) {
    let server = storage.server.as_ref().expect("a server");
    let cut = Cut::start(server.address());
    // What it takes to be let in comes to the hosts by way of their agent.
    let (url, environment) = server.url_bare(&cut.address().to_string());
    let lab = Lab::new(env!("CARGO_BIN_EXE_praas"));
    let mut up = lab.command(&["up", "--set", &format!("agent.storage={url}")]);
    let up = up.envs(environment).output().expect("praas runs");
    assert!(up.status.success(), "{up:?}");
    let module = lab.module().display().to_string();
    lab.one(&["app", "create", "a", "--module", &module]);
    lab.one(&["process", "create", "a", "p"]);
    let session = Session::open(&RunDir::open(&lab.run_dir()).unwrap()).unwrap();
    let client = || session.client("a", Kinds::all()).expect("a client");
    let shown = || lab.one(&["process", "show", "a", "p"]);

    // Out, and back by a call, before all of the state is.
    let mut caller = client();
    assert_eq!(count(&mut caller), 1);
    let large = large_put(&mut caller, 1);
    lab.one(&["swap", "a", "p"]);
    assert_eq!(shown()["swap_generation"], 1);
    assert_eq!(count(&mut caller), 2);
    assert!(caller.invoke("p", STATE_GET, b"large").unwrap() == large);

    // A checkpoint, and an object that is written through, outlive a kill; the rest does not.
    lab.one(&["process", "checkpoint", "a", "p"]);
    let put = ["state", "put", "a", "p", "kept", "--data", "yes"];
    lab.one(&[&put[..], &["--persist"]].concat());
    assert_eq!(count(&mut caller), 3);
    kill(u32::try_from(shown()["pid"].as_u64().unwrap()).unwrap());
    let mut caller = client();
    assert_eq!(count(&mut caller), 3);
    assert_eq!(caller.invoke("p", STATE_GET, b"kept").unwrap(), b"yes");
    assert!(caller.invoke("p", STATE_GET, b"large").unwrap() == large);

    // The server is lost in the middle of a swap: there is none, and the process serves on.
    let large = large_put(&mut caller, 2);
    let before = shown();
    cut.lost_after(REACHES_BYTES);
    let problem = lab.problem(1, &["swap", "a", "p"]);
    assert_eq!(count(&mut caller), 4, "{problem}");
    let after = shown();
    for same in ["state", "pid", "incarnation", "swap_generation"] {
        assert_eq!(after[same], before[same], "{same}: {problem}");
    }
    assert!(cut.mend(), "the swap failed for something else: {problem}");
    lab.one(&["swap", "a", "p"]);
    assert_eq!(count(&mut caller), 5);
    assert!(caller.invoke("p", STATE_GET, b"large").unwrap() == large);

    // Nothing is left of it.
    let storage = storage.storage();
    assert!(!storage.list("").unwrap().is_empty());
    lab.one(&["process", "delete", "a", "p"]);
    assert_eq!(storage.list("").unwrap(), Vec::<String>::new());
}

#[test]
fn a_process_lives_on_redis() {
    storages::hold(Kind::Redis, "hosts", a_process_lives_there);
}

#[test]
fn a_process_lives_on_s3() {
    storages::hold(Kind::S3, "hosts", a_process_lives_there);
}
