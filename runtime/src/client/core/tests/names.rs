//! More names of functions than a client may use.

use super::*;

#[test]
fn one_name_too_many_fails_alone() {
    let (mut core, mut notes, target) = answered();
    core.limits.functions_max = 2;
    core.function(target, "g").unwrap();
    let error = core.function(target, "h").unwrap_err();
    assert!(error.to_string().contains("functions_max"), "{error}");
    let called = name_called(&mut core, &mut notes, target, "g", 0);
    assert_eq!(called.as_deref(), Some("g"));
    assert_eq!(notes.closed, []);
}

#[test]
fn names_that_nothing_has_make_room_for_others() {
    let (mut core, mut notes, target) = answered();
    core.limits.functions_max = 3;
    let unknown = |core: &mut ClientCore<u32>, notes: &mut Notes, tag| {
        core.on_reply(notes, 1, tag, Status::UnknownFunction, Payload::default());
    };
    let call = |core: &mut ClientCore<u32>, notes: &mut Notes, name: &str| {
        let (_, sent) = name_call(core, notes, target, name, 0);
        let (tag, told) = sent.unwrap();
        assert_eq!(told, name);
        tag
    };
    let first = core.function(target, "x0").unwrap();
    for name in 0..100 {
        let name = format!("x{name}");
        let tag = call(&mut core, &mut notes, &name);
        unknown(&mut core, &mut notes, tag);
        let outcome = core.completed().unwrap().outcome;
        assert_eq!(outcome.err(), Some(InvokeError::UnknownFunction(name)));
        call(&mut core, &mut notes, "f");
    }
    // It is taken for none of those that came after it.
    let options = CallOptions::default();
    let late = core.invoke(&mut notes, target, first, Payload::default(), options, 0);
    let Err(Refusal::Never(InvokeError::Exhausted(text))) = late else {
        panic!("{late:?}");
    };
    assert!(text.contains("functions_max"), "{text}");
    // None is forgotten while a call uses it, or since there is such a function after all.
    let [one, other] = ["y", "y"].map(|name| call(&mut core, &mut notes, name));
    call(&mut core, &mut notes, "z");
    unknown(&mut core, &mut notes, one);
    assert!(core.function(target, "w").is_err());
    unknown(&mut core, &mut notes, other);
    let again = call(&mut core, &mut notes, "y");
    core.on_reply(&mut notes, 1, again, Status::Ok, Payload::default());
    assert!(core.function(target, "w").is_err());
    let last = call(&mut core, &mut notes, "y");
    unknown(&mut core, &mut notes, last);
    core.function(target, "w").unwrap();
}

#[test]
fn a_name_that_nothing_has_makes_room_also_if_its_caller_gave_up() {
    let (mut core, mut notes, target) = answered();
    core.limits.functions_max = 2;
    for name in 0..10 {
        let name = format!("x{name}");
        let (call, sent) = name_call(&mut core, &mut notes, target, &name, 0);
        let tag = sent.unwrap().0;
        core.cancel(&mut notes, call);
        assert!(core.function(target, "y").is_err(), "it may be there");
        let unknown = Status::UnknownFunction;
        core.on_reply(&mut notes, 1, tag, unknown, Payload::default());
    }
    // An answer that comes twice, or late, says nothing of the name that has the place since.
    let (call, sent) = name_call(&mut core, &mut notes, target, "x0", 0);
    core.cancel(&mut notes, call);
    let (other, again) = name_call(&mut core, &mut notes, target, "x0", 0);
    core.cancel(&mut notes, other);
    let answer = |core: &mut ClientCore<u32>, notes: &mut Notes, tag| {
        core.on_reply(notes, 1, tag, Status::UnknownFunction, Payload::default());
    };
    let tag = sent.unwrap().0;
    answer(&mut core, &mut notes, tag);
    core.function(target, "y").unwrap();
    answer(&mut core, &mut notes, tag);
    answer(&mut core, &mut notes, again.unwrap().0);
    assert!(core.function(target, "z").is_err());
}

#[test]
fn a_name_that_no_process_was_told_makes_room() {
    let (mut core, mut notes, target) = answered();
    core.limits.functions_max = 2;
    core.on_close(&mut notes, 1, true, "swapped out");
    for name in 0..10 {
        let name = format!("x{name}");
        let (call, _) = name_call(&mut core, &mut notes, target, &name, 0);
        match name.ends_with('5') {
            true => core.cancel(&mut notes, call),
            false => core.on_resolved(&mut notes, target, Err("none".into())),
        }
        core.completed().unwrap();
        if name.ends_with('5') {
            core.on_resolved(&mut notes, target, Err("none".into()));
        }
    }
    // The process may have the other one.
    core.function(target, "y").unwrap();
    assert!(core.function(target, "z").is_err());
    core.function(target, "f").unwrap();
}
