//! What the server refuses, and how: over real sockets, with raw requests where no client of good
//! faith would send them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use praas_control::api::{TicketSpec, TokenRole, TokenSpec};
use praas_control::gateway::BoxFuture;
use praas_control::{
    ControlClient, ControlConfig, ErrorKind, Gateway, GatewayError, GatewayInvocation, Invocation,
    NoGateway, Problem, Repeatable,
};
use praas_transport::Ticket;

use super::fake_agent::PATIENCE;
use super::{Lab, spec};

/// The status, the head in lower case and the body of an answer.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn problem(&self) -> Problem {
        let media = "content-type: application/problem+json";
        assert!(self.head.contains(media), "{}", self.head);
        let problem: Problem = serde_json::from_slice(&self.body).expect("a problem");
        assert_eq!(problem.status, self.status);
        problem
    }

    fn kind(&self) -> Option<ErrorKind> {
        self.problem().error_kind()
    }
}

/// Sends a request as it is written here, and reads the answer to its end.
fn raw(lab: &Lab, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Answer {
    let url = lab.url();
    let host = url.strip_prefix("http://").expect("a URL");
    let mut stream = TcpStream::connect(host).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    for header in headers {
        head += &format!("{header}\r\n");
    }
    head += &format!("content-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).expect("sends");
    // The server may have refused before it read all of it.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    // A connection that is closed with unread bytes may end in a reset, after the answer.
    let _ = stream.read_to_end(&mut answer);
    let at = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let at = at.expect("an answer with a head");
    let head = String::from_utf8_lossy(&answer[..at]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|text| text.parse().ok());
    Answer {
        status: status.expect("a status"),
        head,
        body: answer.split_off(at + 4),
    }
}

fn admin(lab: &Lab) -> String {
    let token = std::fs::read_to_string(&lab.paths.admin_token).expect("admin.token");
    format!("authorization: Bearer {}", token.trim())
}

const JSON: &str = "content-type: application/json";

#[test]
fn without_a_good_token_there_is_health_and_nothing_else() {
    let lab = Lab::new();
    for header in [
        "x: y",
        "authorization: Bearer",
        "authorization: Bearer praas_0",
        "authorization: Basic YTpi",
        "authorization: \u{e9}",
    ] {
        for (method, path) in [
            ("GET", "/v1/applications"),
            ("POST", "/v1/tokens"),
            ("GET", "/metrics"),
            ("GET", "/v1/nodes"),
            ("DELETE", "/v1/applications/a"),
            ("POST", "/v1/applications/a/processes/p/invoke/f"),
        ] {
            let answer = raw(&lab, method, path, &[header], b"");
            assert_eq!(answer.kind(), Some(ErrorKind::Unauthorized), "{path}");
            assert!(answer.head.contains("www-authenticate: bearer"));
        }
    }
    assert_eq!(raw(&lab, "GET", "/healthz", &[], b"").status, 200);
    assert_eq!(lab.client().health().unwrap().status, "ok");
}

#[test]
fn what_no_handler_sees_is_refused_as_a_problem_too() {
    let lab = Lab::new();
    let admin = admin(&lab);
    let kind = |method, path: &str, headers: &[&str], body: &[u8]| {
        raw(&lab, method, path, headers, body).kind()
    };
    assert_eq!(kind("GET", "/nowhere", &[], b""), Some(ErrorKind::NotFound));
    let answer = raw(&lab, "PUT", "/v1/applications", &[&admin], b"");
    assert_eq!(
        (answer.status, answer.kind()),
        (405, Some(ErrorKind::Method))
    );
    assert!(answer.head.contains("allow: "), "{}", answer.head);
    let post = |headers: &[&str], body: &[u8]| kind("POST", "/v1/applications", headers, body);
    assert_eq!(post(&[&admin], b"{}"), Some(ErrorKind::Media));
    let headers = [admin.as_str(), JSON];
    for bad in ["", "{", "[]", r#"{"name":1}"#, r#"{"name":"a","modul":[]}"#] {
        assert_eq!(
            post(&headers, bad.as_bytes()),
            Some(ErrorKind::Invalid),
            "{bad}"
        );
    }
    let deep = "[".repeat(100_000);
    assert_eq!(post(&headers, deep.as_bytes()), Some(ErrorKind::Invalid));
    let large = vec![b' '; lab.config.body_max_bytes + 1];
    assert_eq!(post(&headers, &large), Some(ErrorKind::TooLarge));
    for path in [
        "/v1/applications/%00",
        "/v1/applications/%FF",
        "/v1/applications/a%2Fb",
        &format!("/v1/applications/{}", "x".repeat(256)),
        "/v1/applications/a/processes/p/swap?wait_ms=x",
        "/v1/applications/a/processes/p/swap?wait_ms=9999999999",
        "/v1/applications/a/processes/p/swap?wait=1",
    ] {
        let method = if path.contains('?') { "POST" } else { "GET" };
        assert_eq!(
            kind(method, path, &headers, b""),
            Some(ErrorKind::Invalid),
            "{path}"
        );
    }
}

#[test]
fn a_connection_above_the_limit_waits_for_one_to_end() {
    let config = ControlConfig {
        connections_max: 1,
        ..ControlConfig::default()
    };
    let lab = Lab::with(config, Arc::new(NoGateway));
    let url = lab.url();
    let host = url.strip_prefix("http://").unwrap();
    let request = format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let ask = || {
        let mut stream = TcpStream::connect(host).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    let mut byte = [0];
    let mut first = ask();
    first.set_read_timeout(Some(PATIENCE)).unwrap();
    first.read_exact(&mut byte).unwrap();
    let mut second = ask();
    second
        .set_read_timeout(Some(Duration::from_millis(30)))
        .unwrap();
    let error = second.read_exact(&mut byte).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    drop(first);
    second.set_read_timeout(Some(PATIENCE)).unwrap();
    second.read_exact(&mut byte).unwrap();
}

/// Reads until the other side ends; what came.
fn until_end(mut stream: TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut came = Vec::new();
    let ended = stream.read_to_end(&mut came);
    let timeout = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!timeout, "the connection stays open");
    came
}

/// A control plane with little patience for connections, of which it takes eight.
fn hasty_lab() -> Lab {
    let config = ControlConfig {
        connections_max: 8,
        head_timeout_ms: 200,
        body_timeout_ms: 200,
        answer_stall_ms: 200,
        ..ControlConfig::default()
    };
    Lab::with(config, Arc::new(NoGateway))
}

#[test]
fn connections_that_say_nothing_or_too_little_keep_nobody_out() {
    let lab = hasty_lab();
    let url = lab.url();
    let host = url.strip_prefix("http://").unwrap();
    let begin = |bytes: &str| {
        let mut stream = TcpStream::connect(host).unwrap();
        stream.write_all(bytes.as_bytes()).unwrap();
        stream
    };
    let whole = format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let mut idle: Vec<_> = ["", "GET /healthz HTTP/1.1\r\nx: y\r\n", &whole]
        .into_iter()
        .cycle()
        .take(24)
        .map(begin)
        .collect();
    assert_eq!(lab.client().health().unwrap().status, "ok");
    // Those that go on, a byte now and then, do not live longer.
    let mut slow = idle.split_off(1).swap_remove(0);
    while slow.write_all(b"z").is_ok() {
        std::thread::park_timeout(Duration::from_millis(20));
    }
    until_end(slow);
    idle.into_iter().for_each(|stream| {
        until_end(stream);
    });
}

#[test]
fn a_body_that_does_not_come_is_refused() {
    let lab = hasty_lab();
    let url = lab.url();
    let host = url.strip_prefix("http://").unwrap();
    let admin = admin(&lab);
    let mut stream = TcpStream::connect(host).unwrap();
    let head = format!(
        "POST /v1/applications HTTP/1.1\r\nhost: {host}\r\n{admin}\r\n{JSON}\r\n\
         content-length: 100\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let answer = String::from_utf8(until_end(stream)).unwrap();
    assert!(answer.contains("urn:praas:problem:timeout"), "{answer}");
}

#[test]
fn a_body_that_says_it_is_too_large_is_not_waited_for() {
    let lab = Lab::new();
    let url = lab.url();
    let host = url.strip_prefix("http://").unwrap();
    let admin = admin(&lab);
    let mut stream = TcpStream::connect(host).unwrap();
    let head = format!(
        "POST /v1/applications HTTP/1.1\r\nhost: {host}\r\n{admin}\r\n{JSON}\r\n\
         content-length: 99999999999999\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let answer = String::from_utf8(until_end(stream)).unwrap();
    assert!(answer.contains("urn:praas:problem:too-large"), "{answer}");
}

#[test]
fn who_asks_and_does_not_read_is_cut_off() {
    let lab = hasty_lab();
    let url = lab.url();
    let host = url.strip_prefix("http://").unwrap();
    let request = format!("GET /v1/openapi.json HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let mut stream = TcpStream::connect(host).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    // Many megabytes of answers are asked for, until the server has enough of it.
    let many = request.repeat(100);
    let error = loop {
        if let Err(error) = stream.write_all(many.as_bytes()) {
            break error;
        }
    };
    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
}

#[test]
fn requests_whose_length_is_in_doubt_are_refused() {
    let lab = Lab::new();
    let url = lab.url();
    let host = url.strip_prefix("http://").unwrap();
    let admin = admin(&lab);
    let huge = format!("x: {}", "y".repeat(4 * lab.config.head_max_bytes));
    let many = "x: y\r\n".repeat(200);
    for (headers, status) in [
        ("content-length: 2\r\ncontent-length: 3", 400),
        ("content-length: +2", 400),
        ("content-length: -1", 400),
        ("transfer-encoding: chunked, identity", 400),
        ("x: y\r\n folded: z", 400),
        ("x : y", 400),
        (&huge, 431),
        (many.trim_end(), 431),
    ] {
        let mut stream = TcpStream::connect(host).unwrap();
        let smuggled = format!("DELETE /v1/applications/a HTTP/1.1\r\nhost: h\r\n{admin}\r\n\r\n");
        let request = format!(
            "POST /v1/applications HTTP/1.1\r\nhost: {host}\r\n{admin}\r\n{JSON}\r\n{headers}\r\n\r\n\
             {{}}{smuggled}"
        );
        // It may hang up before all is sent.
        let _ = stream.write_all(request.as_bytes());
        let answer = String::from_utf8(until_end(stream)).unwrap();
        let told = answer.starts_with(&format!("HTTP/1.1 {status} "));
        assert!(told, "{headers:.40}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    }
    assert_eq!(lab.client().health().unwrap().status, "ok");
}

#[test]
fn what_is_not_there_is_not_found() {
    let lab = Lab::new();
    let client = lab.client();
    let not_found = |error: praas_control::ClientError| {
        assert_eq!(error.kind(), Some(ErrorKind::NotFound), "{error}");
    };
    not_found(client.application_show("a").unwrap_err());
    not_found(client.process_list("a").unwrap_err());
    not_found(client.world_show("a").unwrap_err());
    not_found(client.process_create("a", "p").unwrap_err());
    not_found(client.node_forget("n").unwrap_err());
    not_found(client.token_delete("0123456789abcdef").unwrap_err());
    client.application_create(&spec("a")).unwrap();
    not_found(client.process_show("a", "p").unwrap_err());
    not_found(client.process_swap("a", "p").unwrap_err());
    not_found(
        client
            .invoke(&Invocation::new("a", "p", "f", b""))
            .unwrap_err(),
    );
    let again = client.application_create(&spec("a")).unwrap_err();
    assert_eq!(again.kind(), Some(ErrorKind::Conflict));
    assert_eq!(client.world_show("a").unwrap().members, []);
    assert!(
        client
            .metrics()
            .unwrap()
            .contains("praas_http_requests_total")
    );
}

fn token(lab: &Lab, role: TokenRole) -> (String, ControlClient) {
    let label = "test".into();
    let issued = lab.client().token_create(&TokenSpec { role, label });
    let issued = issued.unwrap();
    (
        issued.info.id,
        ControlClient::new(&lab.url(), &issued.token),
    )
}

#[test]
fn an_applications_token_is_good_for_it_and_until_revoked() {
    let mut lab = Lab::new();
    let client = lab.client();
    client.application_create(&spec("a")).unwrap();
    client.application_create(&spec("b")).unwrap();
    let (id, theirs) = token(&lab, TokenRole::Application("a".into()));
    let names = |client: &ControlClient| {
        let applications = client.application_list().unwrap().into_iter();
        applications.map(|a| a.name).collect::<Vec<_>>()
    };
    assert_eq!(names(&theirs), ["a"]);
    theirs.application_show("a").unwrap();
    let forbidden = |error: praas_control::ClientError| {
        assert_eq!(error.kind(), Some(ErrorKind::Forbidden), "{error}");
    };
    forbidden(theirs.application_show("b").unwrap_err());
    forbidden(theirs.application_show("no such").unwrap_err());
    forbidden(theirs.application_create(&spec("c")).unwrap_err());
    forbidden(theirs.application_delete("a").unwrap_err());
    forbidden(theirs.process_create("b", "p").unwrap_err());
    forbidden(theirs.token_list().unwrap_err());
    forbidden(theirs.node_list().unwrap_err());
    forbidden(
        theirs
            .invoke(&Invocation::new("b", "p", "f", b""))
            .unwrap_err(),
    );

    lab.restart();
    let listed = lab.client().token_list().unwrap();
    assert!(
        listed
            .iter()
            .any(|info| info.id == id && info.label == "test")
    );
    lab.client().token_delete(&id).unwrap();
    let theirs = {
        // The port is another one since the restart.
        let (id, theirs) = token(&lab, TokenRole::Application("a".into()));
        theirs.application_show("a").unwrap();
        lab.client().token_delete(&id).unwrap();
        theirs
    };
    let error = theirs.application_show("a").unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::Unauthorized));
    assert!(
        !lab.client()
            .token_list()
            .unwrap()
            .iter()
            .any(|info| info.id == id)
    );
}

#[test]
fn a_ticket_says_what_was_asked_for() {
    let lab = Lab::new();
    let client = lab.client();
    client.application_create(&spec("a")).unwrap();
    let (_, theirs) = token(&lab, TokenRole::Application("a".into()));
    let mut asked = TicketSpec {
        application: None,
        client_id: Some(format!("{:032x}", 7)),
        valid_ms: Some(60_000),
    };
    let issued = theirs.ticket_issue(&asked).unwrap();
    let ticket = Ticket::decode(&issued.credential.ticket).unwrap();
    assert_eq!(&*ticket.application, "a");
    assert_eq!((ticket.client_id, ticket.key_id), (7, 1));
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_millis() as u64;
    assert!((now..=now + 60_000).contains(&ticket.expires_unix_ms));
    assert_eq!(client.application_revoke("a").unwrap().key_id, 2);
    assert_eq!(theirs.ticket_issue(&asked).unwrap().key_id, 2);

    let kind =
        |client: &ControlClient, asked: &TicketSpec| client.ticket_issue(asked).unwrap_err().kind();
    assert_eq!(
        kind(&client, &asked),
        Some(ErrorKind::Invalid),
        "of which application?"
    );
    asked.client_id = Some("7".into());
    assert_eq!(kind(&theirs, &asked), Some(ErrorKind::Invalid));
    asked.application = Some("b".into());
    assert_eq!(kind(&theirs, &asked), Some(ErrorKind::Forbidden));
}

/// Answers with the input in reverse, and remembers what it was asked.
#[derive(Default)]
struct Mirror(Mutex<Vec<GatewayInvocation>>);

impl Gateway for Mirror {
    fn invoke(&self, invocation: GatewayInvocation) -> BoxFuture<Result<Vec<u8>, GatewayError>> {
        let mut output = invocation.input.clone();
        output.reverse();
        let result = match invocation.function.as_str() {
            "fails" => Err(GatewayError::Function("it does".into())),
            _ => Ok(output),
        };
        let hangs = invocation.function == "hangs";
        self.0.lock().unwrap().push(invocation);
        Box::pin(async move {
            if hangs {
                std::future::pending::<()>().await;
            }
            result
        })
    }
}

#[test]
fn invocations_go_through_the_gateway_and_swap_in() {
    let mirror = Arc::new(Mirror::default());
    let config = ControlConfig {
        invoke_body_max_bytes: 3 << 20,
        ..ControlConfig::default()
    };
    let lab = Lab::with(config, Arc::<Mirror>::clone(&mirror));
    let agent = lab.agent("n");
    let client = lab.client();
    let mut application = spec("a");
    application.auto_create = true;
    client.application_create(&application).unwrap();
    assert_eq!(
        client
            .invoke(&Invocation::new("a", "p", "f", b"abc"))
            .unwrap(),
        b"cba"
    );
    let first = agent.started();
    client.process_swap("a", "p").unwrap();
    let large = vec![1; 2 << 20];
    assert_eq!(
        client
            .invoke(&Invocation::new("a", "p", "f", &large))
            .unwrap(),
        large
    );
    let second = agent.started();
    assert!(second.life == first.life && second.incarnation > first.incarnation);
    let asked = mirror.0.lock().unwrap().pop().unwrap();
    assert_eq!(asked.incarnation, second.incarnation);
    assert!(!asked.addresses.is_empty());
    let ticket = Ticket::decode(&asked.credential.ticket).unwrap();
    assert_eq!(&*ticket.application, "a");

    assert!(!asked.one_way);
    client
        .invoke_one_way(&Invocation::new("a", "p", "f", b"abc"))
        .unwrap();
    assert!(mirror.0.lock().unwrap().pop().unwrap().one_way);

    let named = Invocation {
        key: Some("k"),
        first_incarnation: Some(7),
        ..Invocation::new("a", "p", "f", b"abc")
    };
    client.invoke(&named).unwrap();
    let asked = mirror.0.lock().unwrap().pop().unwrap();
    let repeatable = asked.repeatable.unwrap();
    assert_eq!(repeatable, Repeatable::new(["a", "p", "f"], "k", Some(7)));
    let ticket = Ticket::decode(&asked.credential.ticket).unwrap();
    assert_eq!(ticket.client_id, repeatable.client_id);

    let kind = |error: praas_control::ClientError| error.kind();
    let long = "k".repeat(256);
    for (key, first_incarnation) in [(None, Some(7)), (Some(""), None), (Some(&*long), None)] {
        let refused = Invocation {
            key,
            first_incarnation,
            ..named
        };
        let error = client.invoke(&refused).unwrap_err();
        assert_eq!(kind(error), Some(ErrorKind::Invalid), "{refused:?}");
    }
    let error = client
        .invoke(&Invocation::new("a", "p", "fails", b""))
        .unwrap_err();
    assert_eq!(kind(error), Some(ErrorKind::FunctionFailed));
    let error = client
        .invoke(&Invocation::new("a", "p", "f", &vec![0; (3 << 20) + 1]))
        .unwrap_err();
    assert_eq!(kind(error), Some(ErrorKind::TooLarge));
    let hasty = client.clone().with_wait(Duration::from_millis(50));
    let error = hasty
        .invoke(&Invocation::new("a", "p", "hangs", b""))
        .unwrap_err();
    assert_eq!(kind(error), Some(ErrorKind::Timeout));
    agent.end();
}
