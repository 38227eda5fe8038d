//! What `DHCPv6` servers say where those of DHCP say NAK.

use super::*;

fn address(last: u8) -> IpAddr {
    format!("2001:db8::{last}").parse().unwrap()
}

fn server(name: u8) -> Server {
    Server::called(&[0, 3, name], "fe80::fe".parse().unwrap()).unwrap()
}

fn granted(address: IpAddr) -> Answer {
    Answer::Ack(Grant {
        address,
        server: server(1),
        lease: 600,
        t1: None,
        t2: None,
        infrastructure: Vec::new(),
        prefix: None,
    })
}

fn kinds(scene: &mut Scene) -> Vec<String> {
    let name = |action: &Action| match action {
        Action::Send(Message { kind, .. }) => format!("{kind:?}").split(' ').next().unwrap_or_default().to_owned(),
        Action::Notify(Change::Lost { .. }) => "lost".to_owned(),
        Action::Notify(Change::Bound(lease) | Change::Renewed(lease)) => lease.address.to_string(),
        Action::Notify(other) => format!("{other:?}"),
    };
    scene.actions.drain(..).map(|action| name(&action)).collect()
}

/// Bound to `2001:db8::1` and confirmed.
fn bound() -> Scene {
    let mut scene = Scene::new(None);
    scene.reply(Answer::Offer { address: address(1), server: server(1), prefix: None });
    scene.reply(granted(address(1)));
    scene.next();
    scene.reply(granted(address(1)));
    assert_eq!(kinds(&mut scene), ["Discover", "Select", "2001:db8::1", "Reboot", "2001:db8::1"]);
    scene
}

#[test]
fn another_address_in_the_answer_is_a_refusal() {
    let mut scene = bound();
    scene.next();
    assert_eq!(kinds(&mut scene), ["Reboot"]);
    scene.reply(granted(address(2)));
    // It is asked for once more, and then any.
    scene.next();
    scene.reply(granted(address(2)));
    scene.next();
    scene.next();
    assert_eq!(kinds(&mut scene), ["Rebind", "Rebind", "lost", "Discover", "Discover"]);
    scene.reply(Answer::Offer { address: address(2), server: server(1), prefix: None });
    scene.reply(granted(address(2)));
    assert_eq!(kinds(&mut scene), ["Select", "2001:db8::2"]);
}

/// A prefix of another length than the one that was hinted at: that is what is asked for from then on.
#[test]
fn a_prefix_is_asked_for_as_it_was_delegated() {
    let acquisition =
        Acquisition { identity: identity(), remembered: None, wish: None, turn: Turn::Own, prefix: Some(64) };
    let mut machine = Machine::new(acquisition, 1, T0);
    let mut sent = |event: Event<'_>, now| {
        let of = |action: &Action| match action {
            Action::Send(message) => Some((message.prefix, message.xid)),
            Action::Notify(_) => None,
        };
        machine.step(event, now).iter().find_map(of)
    };
    let (hint, xid) = sent(Event::Timer, T0).unwrap();
    assert_eq!(hint, Some(64));
    let reply = |answer, xid| Reply { xid, client: Client::Mac([2, 0, 0, 0, 0, 7]), client_id: None, answer };
    let offer = |prefix| Answer::Offer { address: address(1), server: server(1), prefix };
    assert_eq!(sent(Event::Reply(&reply(offer(None), xid)), T0), None, "an address is no prefix");
    assert_eq!(sent(Event::Reply(&reply(offer(Some(56)), xid)), T0), Some((Some(56), xid)));
    let Answer::Ack(grant) = granted(address(1)) else { panic!() };
    let granted = Answer::Ack(Grant { prefix: Some(56), ..grant });
    assert_eq!(sent(Event::Reply(&reply(granted, xid)), T0), None);
    assert_eq!(sent(Event::Timer, T0 + Duration::from_secs(4)).unwrap().0, Some(56));
}

/// It has the same address, and another name since it has lost its leases.
#[test]
fn a_server_with_another_name_is_another() {
    let mut scene = bound();
    scene.next();
    let nak = Answer::Nak { server: server(2), why: "NoBinding".to_owned() };
    scene.reply(nak);
    assert!(kinds(&mut scene)[1].starts_with("Refused"));
    let other = Grant { server: server(2), ..grant_of(granted(address(1))) };
    scene.reply(Answer::Ack(other));
    assert_eq!(kinds(&mut scene), ["2001:db8::1"]);
}

/// Of two servers of a LAN each has leases of its own.
#[test]
fn another_address_by_another_server_changes_nothing() {
    let mut scene = bound();
    scene.next();
    scene.reply(Answer::Ack(Grant { server: server(2), ..grant_of(granted(address(2))) }));
    let kinds_so_far = kinds(&mut scene);
    assert!(kinds_so_far[1].starts_with("Refused"), "{kinds_so_far:?}");
    scene.reply(granted(address(1)));
    assert_eq!(kinds(&mut scene), ["2001:db8::1"]);
}

fn grant_of(answer: Answer) -> Grant {
    match answer {
        Answer::Ack(grant) => grant,
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_that_is_remembered_by_its_address_alone_is_told_nothing() {
    let remembered =
        Lease { address: address(1), server: Some(Server::at(server(1).address())), ..lease(A, 0.0, 600.0) };
    let mut scene = Scene::new(Some(remembered));
    assert_eq!(kinds(&mut scene), ["Reboot"]);
    scene.event(Event::Release);
    assert_eq!(kinds(&mut scene), [""; 0]);
}
