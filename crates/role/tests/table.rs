//! The decision table of docs/failover.md: each row by name, and every combination at once.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use role::{
    Channel, Contact, CrashRecovery, Database, Decision, Epoch, Intent, IoThread, Known,
    LastPrimary, Limits, NodeView, Observation, PeerView, Policy, Promotion, PromotionKind, Proof,
    Refusal, Rejoin, Rules, SemiSync, Server, Step, crash_recovery, decide, forbidden_by_own_data,
    may_reopen, plan_promotion, promotion, refusal, rejoin,
};

const CAREFUL: Policy = Policy {
    promote_unmet_after_boot: false,
    maintenance: false,
};
/// A moment old.
const FRESH: Proof = Proof {
    age: Duration::from_millis(200),
    window: Duration::from_secs(4),
};
/// One tenth of a second too old to rest an opening on it.
const OLD: Proof = Proof {
    age: Duration::from_millis(3901),
    window: Duration::from_secs(4),
};
const LIMITS: Limits = Limits {
    loss: 0,
    accept_loss: false,
    open_unmet: false,
    unfenced: false,
};

fn server(writable: bool, epoch: u64, opened_by: &str, history: &str) -> Server {
    Server {
        server_id: 1,
        writable,
        epoch: Some(Epoch {
            number: epoch,
            primary: opened_by.to_owned(),
        }),
        binlog_state: history.parse().unwrap(),
        slave_pos: "".parse().unwrap(),
        channels: Vec::new(),
        semi_sync: SemiSync::default(),
    }
}

fn channel(received: &str) -> Channel {
    Channel {
        name: String::new(),
        source: "192.168.137.12".to_owned(),
        io: IoThread::Running,
        sql_running: true,
        follows_slave_pos: true,
        io_errno: 0,
        sql_errno: 0,
        received: received.parse().unwrap(),
        filtered: false,
    }
}

fn answering(server: Server) -> Database {
    Database::Answering(Box::new(server))
}

fn here(entitled: bool, database: Database) -> NodeView {
    NodeView {
        name: "here".to_owned(),
        vip: entitled.into(),
        keepalived: Known::Yes,
        database,
        highest_epoch: 0,
    }
}

fn there(entitled: bool, database: Database) -> Contact {
    Contact::Node(Box::new(NodeView {
        name: "there".to_owned(),
        vip: entitled.into(),
        keepalived: Known::Yes,
        database,
        highest_epoch: 0,
    }))
}

/// The same node that cannot tell whether the VIP is there.
fn untold(mut contact: Contact) -> Contact {
    if let Contact::Node(node) = &mut contact {
        node.vip = Known::NotKnown;
    }
    contact
}

fn seen(local: NodeView, contact: Contact) -> Observation {
    Observation {
        local,
        peers: vec![PeerView {
            name: "there".to_owned(),
            contact,
            met: true,
            last_primary: None,
            proof: Some(FRESH),
        }],
        highest_epoch: 0,
        witness: None,
        granted_to: None,
        alone_at: None,
        stale_since: None,
        unread: None,
        unwritable: None,
    }
}

fn primary_here() -> Database {
    answering(server(true, 5, "here", "0-1-10"))
}

fn closed(opened_by: &str, history: &str) -> Database {
    answering(server(false, 5, opened_by, history))
}

#[test]
fn a_primary_with_the_vip_stays_while_its_peer_is_silent() {
    let look = seen(here(true, primary_here()), Contact::Silent);
    assert!(matches!(decide(&look, CAREFUL), Decision::Stay(_)));
}

#[test]
fn a_primary_that_no_witness_answers_is_cut_off_and_fenced() {
    let mut look = seen(here(true, primary_here()), Contact::Silent);
    look.witness = Some(false);
    assert!(matches!(
        decide(&look, CAREFUL),
        Decision::Fence {
            give_up_vip: true,
            ..
        }
    ));
    look.witness = Some(true);
    assert!(matches!(decide(&look, CAREFUL), Decision::Stay(_)));
}

#[test]
fn of_two_primaries_the_higher_epoch_stays() {
    let other = |epoch| there(false, answering(server(true, epoch, "there", "0-1-10")));
    let look = |epoch| seen(here(true, primary_here()), other(epoch));
    assert!(matches!(
        decide(&look(4), CAREFUL),
        Decision::FencePeers { .. }
    ));
    assert!(matches!(
        decide(&look(6), CAREFUL),
        Decision::Fence {
            give_up_vip: true,
            ..
        }
    ));
    assert!(matches!(
        decide(&look(5), CAREFUL),
        Decision::FenceAll { .. }
    ));
}

#[test]
fn the_vip_moved_first_so_the_primary_is_switched_over() {
    let primary = answering(server(true, 5, "there", "0-2-10"));
    let mut standby = server(false, 5, "there", "0-2-9");
    let from = "there".to_owned();
    // Without a channel it would never catch up under the freeze.
    let look = seen(
        here(true, answering(standby.clone())),
        there(false, primary.clone()),
    );
    assert_eq!(
        decide(&look, CAREFUL),
        Decision::CatchUp { from: from.clone() }
    );
    standby.channels = vec![channel("0-2-9")];
    let mut look = seen(here(true, answering(standby)), there(false, primary));
    assert_eq!(decide(&look, CAREFUL), Decision::SwitchOver { from });
    // A switch-over to that peer was killed after it had opened.
    look.granted_to = Some("there".to_owned());
    assert!(matches!(decide(&look, CAREFUL), Decision::GiveUpVip(_)));
}

#[test]
fn a_split_front_network_changes_nothing() {
    let primary = answering(server(true, 5, "there", "0-2-10"));
    let look = seen(here(true, closed("there", "0-2-9")), there(true, primary));
    assert!(matches!(decide(&look, CAREFUL), Decision::Refuse { .. }));
}

#[test]
fn when_nobody_writes_the_better_history_opens() {
    let look = |mine: &str, theirs: &str| {
        seen(
            here(true, closed("there", mine)),
            there(false, closed("there", theirs)),
        )
    };
    assert!(matches!(
        decide(&look("0-2-10", "0-2-10"), CAREFUL),
        Decision::Promote(_)
    ));
    assert!(matches!(
        decide(&look("0-2-11", "0-2-10"), CAREFUL),
        Decision::Promote(_)
    ));
    assert!(matches!(
        decide(&look("0-2-9", "0-2-10"), CAREFUL),
        Decision::CatchUp { .. }
    ));
    // Diverged: the node that the epoch's row names.
    let diverged = look("0-2-9,0-1-3", "0-2-10");
    assert!(matches!(decide(&diverged, CAREFUL), Decision::GiveUpVip(_)));
}

#[test]
fn a_silent_peer_is_a_failover_only_when_it_was_met() {
    let mut look = seen(here(true, closed("there", "0-2-10")), Contact::Silent);
    assert!(matches!(decide(&look, CAREFUL), Decision::Promote(_)));
    look.peers[0].met = false;
    assert!(matches!(decide(&look, CAREFUL), Decision::Wait(_)));
}

#[test]
fn what_an_interrupted_promotion_left_is_finished() {
    let mut unclaimed = server(true, 5, "there", "0-1-10");
    unclaimed.channels = vec![channel("0-1-10")];
    let look = seen(here(true, answering(unclaimed.clone())), Contact::Silent);
    assert_eq!(decide(&look, CAREFUL), Decision::ClaimEpoch);
    unclaimed.epoch = Some(Epoch {
        number: 6,
        primary: "here".to_owned(),
    });
    let look = seen(here(true, answering(unclaimed)), Contact::Silent);
    assert_eq!(decide(&look, CAREFUL), Decision::ForgetChannel);
}

#[test]
fn old_data_are_never_opened() {
    let mut look = seen(here(true, closed("there", "0-2-10")), Contact::Silent);
    look.highest_epoch = 6;
    assert!(matches!(decide(&look, CAREFUL), Decision::Refuse { .. }));
}

#[test]
fn a_primary_without_the_vip_and_without_a_peer_is_fenced() {
    let look = seen(here(false, primary_here()), Contact::Silent);
    assert!(matches!(decide(&look, CAREFUL), Decision::Fence { .. }));
    let look = seen(
        here(false, primary_here()),
        there(false, closed("here", "0-1-10")),
    );
    assert!(matches!(decide(&look, CAREFUL), Decision::Stay(_)));
    let look = seen(
        here(false, primary_here()),
        there(true, closed("here", "0-1-10")),
    );
    assert!(matches!(decide(&look, CAREFUL), Decision::Wait(_)));
}

#[test]
fn a_standby_attaches_unless_it_has_diverged() {
    let primary = || there(true, answering(server(true, 5, "there", "0-1-9,0-2-10")));
    let look = seen(here(false, closed("there", "0-1-9")), primary());
    assert!(matches!(decide(&look, CAREFUL), Decision::Attach { .. }));
    let look = seen(here(false, closed("here", "0-1-10")), primary());
    assert!(matches!(decide(&look, CAREFUL), Decision::Diverged { .. }));
    // Not by an old primary that woke up and has not closed itself yet: nothing is taken back for it.
    let mut look = look;
    look.highest_epoch = 6;
    assert!(matches!(decide(&look, CAREFUL), Decision::Wait(_)));
    let mut newer = server(false, 6, "here", "0-1-10");
    newer.server_id = 1;
    let look = seen(here(false, answering(newer)), primary());
    assert!(matches!(decide(&look, CAREFUL), Decision::Wait(_)));
}

#[test]
fn a_silent_database_is_killed_only_when_another_node_takes_over() {
    let look = seen(
        here(false, Database::Silent),
        there(true, closed("here", "0-1-10")),
    );
    assert_eq!(decide(&look, CAREFUL), Decision::KillLocal);
    let look = seen(
        here(false, Database::Starting),
        there(true, closed("here", "0-1-10")),
    );
    assert!(matches!(decide(&look, CAREFUL), Decision::Stay(_)));
}

#[test]
fn a_database_of_which_nothing_can_be_told_is_treated_as_one_that_may_write() {
    let look = |contact| seen(here(false, Database::NotKnown), contact);
    let taking_over = there(true, closed("here", "0-1-10"));
    assert_eq!(decide(&look(taking_over), CAREFUL), Decision::KillLocal);
    assert!(matches!(
        decide(&look(Contact::Silent), CAREFUL),
        Decision::Wait(_)
    ));
    assert!(!role::fitness(&look(Contact::Silent)).is_fit());
    // On the peer it is fenced, and what it has and never sent is fetched.
    let look = seen(
        here(true, closed("there", "0-2-10")),
        there(false, Database::NotKnown),
    );
    let steps = plan_promotion(&look, PromotionKind::TakeOver, LIMITS)
        .unwrap()
        .steps;
    let peer = || "there".to_owned();
    assert_eq!(steps[0], Step::FencePeer { peer: peer() });
    assert!(steps.contains(&Step::Harvest { peer: peer() }));
}

#[test]
fn an_address_without_keepalived_is_removed() {
    let mut look = seen(here(true, primary_here()), Contact::Silent);
    look.local.keepalived = Known::No;
    assert_eq!(decide(&look, CAREFUL), Decision::RemoveAddress);
}

#[test]
fn a_look_for_the_vip_that_failed_changes_nothing() {
    let blind = |database| {
        let mut local = here(true, database);
        local.vip = Known::NotKnown;
        local
    };
    let peer = || there(false, closed("here", "0-1-10"));
    // A healthy primary is not closed while its standby is silent.
    for contact in [Contact::Silent, peer()] {
        let look = seen(blind(primary_here()), contact);
        assert!(matches!(decide(&look, CAREFUL), Decision::Wait(_)));
    }
    // It is cut off whether it has the VIP or not.
    let mut look = seen(blind(primary_here()), Contact::Silent);
    look.witness = Some(false);
    assert!(matches!(decide(&look, CAREFUL), Decision::Fence { .. }));
    // A second primary that is older leaves the VIP that it may have.
    let newer = there(true, answering(server(true, 6, "there", "0-1-10")));
    let look = seen(blind(primary_here()), newer);
    assert!(matches!(
        decide(&look, CAREFUL),
        Decision::Fence {
            give_up_vip: true,
            ..
        }
    ));
    // A standby does not open, switch over, attach or take anything back.
    let primary = |history| there(true, answering(server(true, 5, "there", history)));
    for contact in [
        Contact::Silent,
        peer(),
        primary("0-1-10,0-2-11"),
        primary("0-2-10"),
    ] {
        let look = seen(blind(closed("here", "0-1-10")), contact);
        assert!(matches!(decide(&look, CAREFUL), Decision::Wait(_)));
    }
    // No address is removed, and none is left where Keepalived is not known to be gone.
    let mut local = here(true, primary_here());
    local.keepalived = Known::NotKnown;
    let look = seen(local, peer());
    assert!(matches!(decide(&look, CAREFUL), Decision::Wait(_)));
    let mut local = blind(primary_here());
    local.keepalived = Known::No;
    assert_ne!(
        decide(&seen(local, peer()), CAREFUL),
        Decision::RemoveAddress
    );
}

#[test]
fn a_peer_that_cannot_tell_of_its_vip_is_not_taken_to_be_without() {
    let mut standby = server(false, 5, "there", "0-2-9");
    standby.channels = vec![channel("0-2-9")];
    let primary = answering(server(true, 5, "there", "0-2-10"));
    let look = seen(
        here(true, answering(standby)),
        untold(there(false, primary)),
    );
    assert!(matches!(decide(&look, CAREFUL), Decision::Refuse { .. }));
    // Nor is it taken to take over.
    let other = || there(true, closed("here", "0-1-10"));
    let look = |contact| seen(here(false, Database::Silent), contact);
    assert_eq!(decide(&look(other()), CAREFUL), Decision::KillLocal);
    assert!(matches!(
        decide(&look(untold(other())), CAREFUL),
        Decision::Wait(_)
    ));
}

#[test]
fn received_events_are_drained_and_missing_ones_are_refused() {
    let mut standby = server(false, 5, "there", "0-2-9");
    standby.channels = vec![channel("0-2-10")];
    let mut look = seen(here(true, answering(standby)), Contact::Silent);
    let plan = plan_promotion(&look, PromotionKind::TakeOver, LIMITS).unwrap();
    assert_eq!(plan.steps.first(), Some(&Step::Drain));
    let last = |semi_sync| LastPrimary {
        history: "0-2-12".parse().unwrap(),
        semi_sync,
        // Of a release that gives no pledges.
        pledges: false,
    };
    look.peers[0].proof = None;
    look.peers[0].last_primary = Some(last(false));
    let refusal = plan_promotion(&look, PromotionKind::TakeOver, LIMITS).unwrap_err();
    assert!(refusal.to_string().contains("--accept-loss"), "{refusal}");
    let accepted = Limits {
        accept_loss: true,
        ..LIMITS
    };
    let plan = plan_promotion(&look, PromotionKind::TakeOver, accepted).unwrap();
    assert_eq!(plan.accepted_loss, 2);
    // Both threads stopped: to start the applying one would throw away what it has not applied.
    let mut stopped = server(false, 5, "there", "0-2-9");
    stopped.channels = vec![Channel {
        io: IoThread::Stopped,
        sql_running: false,
        ..channel("0-2-10")
    }];
    let both = seen(here(true, answering(stopped)), Contact::Silent);
    assert!(plan_promotion(&both, PromotionKind::TakeOver, LIMITS).is_err());
    let plan = plan_promotion(&both, PromotionKind::TakeOver, accepted).unwrap();
    assert!(!plan.steps.contains(&Step::Drain), "{:?}", plan.steps);
    assert_eq!(plan.accepted_loss, 1);
    // A primary that waited for its replica acknowledged nothing that is missing here.
    look.peers[0].last_primary = Some(last(true));
    assert!(plan_promotion(&look, PromotionKind::TakeOver, LIMITS).is_ok());
}

/// Local and peer databases in every form that the table tells apart.
fn databases(owner: &str) -> Vec<Database> {
    let mut all = vec![
        Database::Down,
        Database::Silent,
        Database::Starting,
        Database::NotKnown,
    ];
    for writable in [true, false] {
        for epoch in [4, 5, 6] {
            for history in ["0-1-10", "0-1-10,0-2-11", "0-1-9", "0-1-9,0-2-10"] {
                let mut plain = server(writable, epoch, owner, history);
                all.push(answering(plain.clone()));
                plain.channels = vec![channel("0-1-10,0-2-11")];
                all.push(answering(plain));
            }
        }
    }
    all
}

#[test]
fn every_combination_keeps_the_promises() {
    let mut cells = 0_u64;
    let mut contacts = vec![Contact::Silent, Contact::HostUp];
    for database in databases("there") {
        if let Database::Answering(server) = &database {
            contacts.push(Contact::Database(server.clone()));
        }
        contacts.push(there(true, database.clone()));
        contacts.push(untold(there(true, database.clone())));
        contacts.push(there(false, database));
    }
    for database in databases("here") {
        for (vip, keepalived, proof) in [
            (Known::Yes, Known::Yes, Some(FRESH)),
            (Known::Yes, Known::Yes, Some(OLD)),
            (Known::Yes, Known::Yes, None),
            (Known::No, Known::Yes, Some(FRESH)),
            (Known::Yes, Known::No, Some(FRESH)),
            (Known::NotKnown, Known::Yes, Some(FRESH)),
            (Known::Yes, Known::NotKnown, Some(FRESH)),
        ] {
            for contact in &contacts {
                for (met, highest_epoch, witness) in [
                    (true, 0, None),
                    (false, 0, None),
                    (true, 6, Some(false)),
                    (false, 6, Some(true)),
                ] {
                    for granted in [None, Some("there"), Some("here")] {
                        let mut local = here(false, database.clone());
                        local.vip = vip;
                        local.keepalived = keepalived;
                        let mut look = seen(local, contact.clone());
                        look.peers[0].met = met;
                        look.peers[0].proof = proof;
                        look.highest_epoch = highest_epoch;
                        look.witness = witness;
                        look.granted_to = granted.map(str::to_owned);
                        judge(&look);
                        cells += 1;
                    }
                }
            }
        }
    }
    assert!(cells > 100_000, "{cells}");
}

fn judge(look: &Observation) {
    let decision = decide(look, CAREFUL);
    let peer = &look.peers[0];
    let me = look.local.database.server();
    let newer = peer
        .server()
        .map_or(0, Server::epoch_number)
        .max(look.highest_epoch);
    match &decision {
        Decision::Promote(_) => {
            assert_eq!(
                look.local.entitled(),
                Known::Yes,
                "promotes without the VIP: {look:?}"
            );
            assert!(!peer.writable(), "promotes beside a primary: {look:?}");
            let me = me.unwrap();
            // What is to be harvested is looked at again right before the opening, as what is to be applied is.
            let to_harvest = plan_promotion(look, PromotionKind::TakeOver, LIMITS)
                .is_ok_and(|plan| plan.steps.iter().any(|s| matches!(s, Step::Harvest { .. })));
            let refused = plan_promotion(look, PromotionKind::TakeOver, LIMITS).is_err();
            assert!(
                me.epoch_number() >= newer || me.unapplied() || to_harvest || refused,
                "opens old data: {look:?}"
            );
            assert!(
                peer.met || peer.server().is_some(),
                "promotes unmet: {look:?}"
            );
            if let Ok(plan) = plan_promotion(look, PromotionKind::TakeOver, LIMITS) {
                ordered(&plan.steps);
                let asked = matches!(&peer.contact, Contact::Database(_) | Contact::Node(_));
                assert!(
                    asked || peer.nothing_is_missing(),
                    "opens without knowing that nothing is missing: {look:?}"
                );
            }
        }
        Decision::SwitchOver { .. } => {
            assert!(
                look.local.entitled() == Known::Yes && peer.entitled() == Known::No,
                "{look:?}"
            );
            if let Ok(plan) = plan_promotion(
                look,
                PromotionKind::SwitchOver {
                    from: "there".to_owned(),
                },
                LIMITS,
            ) {
                ordered(&plan.steps);
            }
        }
        Decision::Refuse { why, next } => assert!(!why.is_empty() && !next.is_empty()),
        _ => {}
    }
    // Two primaries are never left alone, whatever else is seen.
    if me.is_some_and(|m| m.writable) && peer.writable() && look.local.keepalived != Known::No {
        assert!(
            matches!(
                decision,
                Decision::Fence { .. } | Decision::FenceAll { .. } | Decision::FencePeers { .. }
            ),
            "two primaries and {decision:?}: {look:?}"
        );
    }
}

/// Whatever could still write is stopped before the one opening.
fn ordered(steps: &[Step]) {
    let open = steps.iter().position(|s| *s == Step::Open).unwrap();
    files_are_ordered(steps);
    assert_eq!(steps.iter().filter(|s| **s == Step::Open).count(), 1);
    for (index, step) in steps.iter().enumerate() {
        match step {
            Step::StopReceivingFrom { .. }
            | Step::FencePeer { .. }
            | Step::FreezePeer { .. }
            | Step::SealFiles { .. }
            | Step::CatchUp { .. }
            | Step::Grant { .. }
            | Step::Drain
            | Step::Harvest { .. }
            | Step::StopReplication
            | Step::StopReceiving
            | Step::TakeBackGrant => assert!(index < open, "{steps:?}"),
            Step::ClaimEpoch { .. }
            | Step::ForgetChannel
            | Step::FetchVip { .. }
            | Step::Demote { .. } => {
                assert!(index > open, "{steps:?}");
            }
            Step::Open => {}
        }
    }
}

/// The sender has sent all that it will send before the receivers end, and they before the opening.
fn files_are_ordered(steps: &[Step]) {
    let next = |step: &Step| steps.iter().skip_while(|s| *s != step).nth(1);
    assert!(
        matches!(
            next(&Step::StopReceiving),
            Some(Step::TakeBackGrant | Step::Open)
        ),
        "{steps:?}"
    );
    for peer in steps.iter().filter_map(|step| match step {
        Step::FreezePeer { peer } => Some(peer.clone()),
        _ => None,
    }) {
        let frozen = Step::FreezePeer { peer: peer.clone() };
        let sealed = Step::SealFiles { peer: peer.clone() };
        assert_eq!(next(&frozen), Some(&sealed));
        assert_eq!(next(&sealed), Some(&Step::CatchUp { peer }));
    }
    let seals = |step: &&Step| matches!(step, Step::SealFiles { .. });
    let freezes = |step: &&Step| matches!(step, Step::FreezePeer { .. });
    assert_eq!(
        steps.iter().filter(seals).count(),
        steps.iter().filter(freezes).count()
    );
}

#[test]
fn a_standby_that_was_read_a_moment_after_its_primary_is_not_diverged() {
    let mut primary = server(true, 5, "there", "0-2-10");
    primary.server_id = 2;
    let mut standby = server(false, 5, "there", "0-2-12");
    standby.channels = vec![channel("0-2-13")];
    let look = seen(
        here(true, answering(standby.clone())),
        there(false, answering(primary.clone())),
    );
    assert!(role::fitness(&look).is_fit());
    let kind = PromotionKind::SwitchOver {
        from: "there".to_owned(),
    };
    assert!(plan_promotion(&look, kind, LIMITS).is_ok());
    // Its own writes are another matter, running channel or not.
    standby.binlog_state = "0-1-11,0-2-12".parse().unwrap();
    let look = seen(
        here(false, answering(standby)),
        there(true, answering(primary)),
    );
    assert!(!role::fitness(&look).is_fit());
}

#[test]
fn maintenance_stops_changes_and_no_fence() {
    let quiet = Policy {
        maintenance: true,
        ..CAREFUL
    };
    let take_over = seen(here(true, closed("there", "0-2-10")), Contact::Silent);
    assert!(matches!(decide(&take_over, CAREFUL), Decision::Promote(_)));
    assert!(matches!(decide(&take_over, quiet), Decision::Refuse { .. }));
    let newer = there(true, answering(server(true, 6, "there", "0-1-10,0-2-11")));
    let old_primary = seen(here(false, primary_here()), newer);
    assert!(matches!(
        decide(&old_primary, quiet),
        Decision::Fence { .. }
    ));
}

#[test]
fn a_peer_is_judged_as_it_would_judge_itself() {
    let mut standby = server(false, 5, "here", "0-1-10");
    let mut waits = server(true, 5, "here", "0-1-10");
    waits.semi_sync.enabled = true;
    let look = |standby: &Server| {
        seen(
            here(true, answering(waits.clone())),
            there(false, answering(standby.clone())),
        )
    };
    standby.channels = vec![channel("0-1-10")];
    let fit = |look: &Observation| role::peer_fitness(look, &look.peers[0]).is_fit();
    assert!(fit(&look(&standby)));
    // Without it commits are acknowledged here, and it does not have them.
    assert!(!fit(&seen(
        here(true, primary_here()),
        there(false, answering(standby.clone()))
    )));
    standby.channels[0].sql_errno = 1062;
    assert!(!fit(&look(&standby)));
    assert!(!fit(&seen(here(true, primary_here()), Contact::Silent)));
}

#[test]
fn a_stopped_applying_thread_is_left_alone_and_drained_before_a_switch_over() {
    let primary = answering(server(true, 5, "there", "0-2-10"));
    let mut standby = server(false, 5, "there", "0-2-8");
    standby.channels = vec![channel("0-2-10")];
    standby.channels[0].sql_running = false;
    let look = seen(
        here(false, answering(standby.clone())),
        there(true, primary.clone()),
    );
    assert!(matches!(decide(&look, CAREFUL), Decision::Wait(_)));
    let look = seen(here(true, answering(standby)), there(false, primary));
    let kind = PromotionKind::SwitchOver {
        from: "there".to_owned(),
    };
    let steps = plan_promotion(&look, kind, LIMITS).unwrap().steps;
    assert_eq!(steps[0], Step::Drain);
    assert!(matches!(steps[1], Step::FreezePeer { .. }));
}

#[test]
fn every_way_to_open_stops_the_files_before() {
    let mut standby = server(false, 5, "there", "0-2-10");
    standby.channels = vec![channel("0-2-10")];
    let primary = answering(server(true, 5, "there", "0-2-10"));
    let mut look = seen(here(true, answering(standby)), there(false, primary));
    look.granted_to = Some("there".to_owned());
    let names = |look: &Observation, kind| -> Vec<String> {
        let steps = plan_promotion(look, kind, LIMITS).unwrap().steps;
        steps.iter().map(Step::to_string).collect()
    };
    let kind = PromotionKind::SwitchOver {
        from: "there".to_owned(),
    };
    assert_eq!(
        names(&look, kind),
        [
            "freeze writes on there",
            "let there send its last files",
            "catch up with there",
            "take the right to write from there",
            "stop replication",
            "stop receiving files",
            "take back the right to write",
            "open the database for writes",
            "write epoch 6",
            "forget the old replication channel",
            "make there a replica",
        ]
    );
    look.peers[0].contact = Contact::Silent;
    look.granted_to = None;
    assert_eq!(
        names(&look, PromotionKind::TakeOver),
        [
            "stop replication",
            "stop receiving files",
            "open the database for writes",
            "write epoch 6",
            "forget the old replication channel",
        ]
    );
}

#[test]
fn a_standby_that_no_witness_answers_is_cut_off_and_stays_closed() {
    let mut look = seen(here(true, closed("there", "0-2-10")), Contact::Silent);
    look.witness = Some(false);
    assert!(matches!(decide(&look, CAREFUL), Decision::Wait(_)));
    look.witness = Some(true);
    assert!(matches!(decide(&look, CAREFUL), Decision::Promote(_)));
}

#[test]
fn a_crashed_server_keeps_its_binlog_unless_another_node_went_on() {
    let after_a_crash = |contact| seen(here(false, Database::Down), contact);
    let keeps = |look: &Observation| matches!(crash_recovery(look), CrashRecovery::Keep(_));
    assert!(keeps(&after_a_crash(Contact::Silent)));
    assert!(keeps(&after_a_crash(there(
        true,
        closed("there", "0-2-20")
    ))));
    let mut look = after_a_crash(there(true, answering(server(true, 7, "there", "0-2-20"))));
    look.highest_epoch = 7;
    assert_eq!(
        crash_recovery(&look),
        CrashRecovery::CutOff {
            primary: "there".to_owned()
        }
    );
    look.highest_epoch = 8;
    assert!(keeps(&look), "an older primary proves nothing");
}

const PLAIN: Intent = Intent::Promote {
    force: false,
    accept_loss: false,
};
const FORCE: Intent = Intent::Promote {
    force: true,
    accept_loss: false,
};
const ACCEPT_LOSS: Intent = Intent::Promote {
    force: false,
    accept_loss: true,
};

/// Each intent with the shipped settings and with everything that settings can allow.
#[test]
fn an_intent_allows_what_its_row_says() {
    let shipped = Rules::default();
    let generous = Rules {
        promote_unmet_after_boot: true,
        loss_limit: 7,
        maintenance: true,
    };
    // unmet by the table, maintenance; loss, accepted, unmet by the plan, unfenced.
    let of = |intent: Intent, rules: Rules| {
        let (policy, limits) = (intent.policy(rules), intent.limits(rules));
        (
            [policy.promote_unmet_after_boot, policy.maintenance],
            limits.loss,
            [limits.accept_loss, limits.open_unmet, limits.unfenced],
        )
    };
    let (no, yes) = (false, true);
    for (intent, by_default, at_most) in [
        (
            Intent::Audit,
            ([no, no], 0, [no, no, no]),
            ([yes, yes], 7, [no, yes, no]),
        ),
        (
            PLAIN,
            ([no, no], 0, [no, no, no]),
            ([yes, no], 7, [no, no, no]),
        ),
        (
            FORCE,
            ([yes, no], 0, [no, yes, yes]),
            ([yes, no], 7, [no, yes, yes]),
        ),
        (
            ACCEPT_LOSS,
            ([no, no], 0, [yes, no, no]),
            ([yes, no], 7, [yes, no, no]),
        ),
        (
            Intent::Failback,
            ([no, no], 0, [no, no, no]),
            ([yes, no], 0, [no, no, no]),
        ),
        (
            Intent::Rejoin,
            ([no, no], 0, [no, no, no]),
            ([no, no], 0, [no, no, no]),
        ),
        (
            Intent::Reopening,
            ([no, no], 0, [no, no, no]),
            ([yes, no], 0, [no, no, no]),
        ),
    ] {
        assert_eq!(of(intent, shipped), by_default, "{intent:?}");
        assert_eq!(of(intent, generous), at_most, "{intent:?}");
    }
}

#[test]
fn no_setting_lets_the_audit_go_on_without_fencing_a_host_that_is_up() {
    let rules = Rules {
        promote_unmet_after_boot: true,
        ..Rules::default()
    };
    let mut look = seen(here(true, closed("there", "0-2-10")), Contact::HostUp);
    look.peers[0].met = false;
    let plan =
        |intent: Intent| plan_promotion(&look, PromotionKind::TakeOver, intent.limits(rules));
    assert!(matches!(
        plan(Intent::Audit),
        Err(role::Refusal::CannotFence { .. })
    ));
    assert!(plan(FORCE).is_ok());
    look.peers[0].contact = Contact::Silent;
    assert!(plan_promotion(&look, PromotionKind::TakeOver, Intent::Audit.limits(rules)).is_ok());
}

#[test]
fn a_wish_to_be_the_primary_comes_to_what_its_row_says() {
    let by = |kind| Promotion::By(kind);
    let switch_over = || {
        by(PromotionKind::SwitchOver {
            from: "there".to_owned(),
        })
    };
    let open = || answering(server(true, 5, "there", "0-2-10"));
    let standby = || closed("there", "0-2-10");
    let ask = |intent, local, contact| promotion(intent, &seen(local, contact), Rules::default());
    assert_eq!(
        ask(PLAIN, here(true, primary_here()), Contact::Silent),
        Promotion::Already
    );
    // Whoever has the VIP: a person's wish replaces it.
    for (vip_here, vip_there) in [(false, true), (true, false), (true, true)] {
        for intent in [PLAIN, FORCE, ACCEPT_LOSS, Intent::Failback] {
            let asked = ask(intent, here(vip_here, standby()), there(vip_there, open()));
            assert_eq!(asked, switch_over(), "{intent:?} {vip_here} {vip_there}");
        }
    }
    assert_eq!(
        ask(PLAIN, here(false, standby()), Contact::Silent),
        by(PromotionKind::TakeOver)
    );
    // The primary answers over SQL alone: refused, but for a person who insists.
    let over_sql = || Contact::Database(Box::new(server(true, 5, "there", "0-2-10")));
    for (intent, declined) in [(PLAIN, true), (Intent::Failback, true), (FORCE, false)] {
        let asked = ask(intent, here(false, standby()), over_sql());
        assert_eq!(
            matches!(asked, Promotion::Declined { .. }),
            declined,
            "{intent:?}: {asked:?}"
        );
    }
}

#[test]
fn a_node_rejoins_with_its_data_or_says_whether_a_copy_would_do() {
    let open = || there(true, answering(server(true, 5, "there", "0-2-10")));
    let ask = |database| rejoin(&seen(here(false, database), open()), Rules::default());
    assert_eq!(ask(closed("there", "0-2-10")), Rejoin::Attach);
    assert_eq!(ask(closed("there", "0-1-3,0-2-10")), Rejoin::TakeBack);
    let mut standby = server(false, 5, "there", "0-2-10");
    standby.channels = vec![channel("0-2-10")];
    assert_eq!(ask(answering(standby.clone())), Rejoin::Follows);
    standby.channels[0].sql_errno = 1062;
    let copy = |rejoin| match rejoin {
        Rejoin::Refused { copy_helps, .. } => copy_helps,
        other => panic!("{other:?}"),
    };
    assert!(copy(ask(answering(standby))));
    assert!(copy(ask(Database::Down)));
    assert!(!copy(ask(Database::Starting)));
    assert!(!copy(ask(Database::Silent)));
}

#[test]
fn a_node_opens_again_alone_where_the_table_would_leave_it_open() {
    let frozen = || here(true, closed("here", "0-1-10"));
    let rules = Rules {
        maintenance: true,
        ..Rules::default()
    };
    assert!(may_reopen(&seen(frozen(), Contact::Silent), rules));
    let mut cut_off = seen(frozen(), Contact::Silent);
    cut_off.witness = Some(false);
    assert!(!may_reopen(&cut_off, rules));
    let newer = there(false, answering(server(true, 6, "there", "0-1-10,0-2-11")));
    assert!(!may_reopen(&seen(frozen(), newer), rules));
    let silent = seen(here(true, Database::Silent), Contact::Silent);
    assert!(!may_reopen(&silent, rules));
}

fn take_over(look: &Observation, intent: Intent) -> Result<role::Plan, role::Refusal> {
    let rules = Rules::default();
    plan_promotion(look, PromotionKind::TakeOver, intent.limits(rules))
}

fn receiving_standby() -> Observation {
    let mut standby = server(false, 5, "there", "0-2-10");
    standby.channels = vec![channel("0-2-10")];
    seen(here(true, answering(standby)), Contact::Silent)
}

#[test]
fn a_standby_opens_by_itself_only_while_its_proof_holds() {
    let mut look = receiving_standby();
    let plan = take_over(&look, Intent::Audit).unwrap();
    assert!(plan.rests_on_proof && !plan.bound && plan.unfenced.is_empty());
    for proof in [Some(OLD), None] {
        look.peers[0].proof = proof;
        for intent in [Intent::Audit, PLAIN] {
            let refused = take_over(&look, intent).unwrap_err();
            assert!(
                matches!(refused, role::Refusal::MayLack { .. }),
                "{refused}"
            );
        }
        // A person may leave open what is not known, and accept what is lost.
        assert!(take_over(&look, FORCE).is_ok());
        assert!(take_over(&look, ACCEPT_LOSS).is_ok());
    }
    // What may be missing since a known time is more than not known.
    look.stale_since = Some("2026-11-27 03:12:09".to_owned());
    let refused = take_over(&look, FORCE).unwrap_err();
    assert!(refused.to_string().contains("since 2026-11-27 03:12:09"));
    assert!(!take_over(&look, ACCEPT_LOSS).unwrap().rests_on_proof);
    // Semi-synchronous a while ago says nothing: the primary may have gone on alone since.
    look.stale_since = None;
    look.peers[0].last_primary = Some(LastPrimary {
        history: "0-2-10".parse().unwrap(),
        semi_sync: true,
        pledges: true,
    });
    assert!(take_over(&look, Intent::Audit).is_err());
    // Unless its release gives no pledges: then it is all there is.
    look.peers[0].last_primary.as_mut().unwrap().pledges = false;
    assert!(!take_over(&look, Intent::Audit).unwrap().rests_on_proof);
}

#[test]
fn what_cannot_be_read_opens_nothing_and_fences_all_the_same() {
    let unread = |mut look: Observation| {
        look.unread = Some("epoch.json: damaged".to_owned());
        look
    };
    // The failover, and a switch-over to here.
    for contact in [
        Contact::Silent,
        there(false, answering(server(true, 5, "there", "0-2-10"))),
    ] {
        let look = seen(here(true, closed("there", "0-2-10")), contact);
        assert!(matches!(
            decide(&look, CAREFUL),
            Decision::Promote(_) | Decision::SwitchOver { .. }
        ));
        let look = unread(look);
        assert!(matches!(decide(&look, CAREFUL), Decision::Refuse { .. }));
        assert!(!role::fitness(&look).is_fit());
        // A person may know better.
        let promotion = role::promotion(FORCE, &look, Rules::default());
        assert!(matches!(promotion, role::Promotion::By(_)), "{promotion:?}");
    }
    let closed_here = unread(seen(here(false, closed("here", "0-1-10")), Contact::Silent));
    assert!(!role::may_reopen(&closed_here, Rules::default()));
    // An open database goes on, and is closed where it must be.
    let primary = unread(seen(here(true, primary_here()), Contact::Silent));
    assert!(matches!(decide(&primary, CAREFUL), Decision::Stay(_)));
    assert!(role::fitness(&primary).is_fit());
    let mut cut_off = primary;
    cut_off.witness = Some(false);
    assert!(matches!(decide(&cut_off, CAREFUL), Decision::Fence { .. }));
}

/// A standby whose receiving thread is in that state, and its primary.
fn receiving(io: IoThread, io_errno: u32) -> Observation {
    let mut standby = server(false, 5, "there", "0-2-9");
    standby.channels = vec![Channel {
        io,
        io_errno,
        ..channel("0-2-9")
    }];
    let primary = there(true, answering(server(true, 5, "there", "0-2-10")));
    seen(here(false, answering(standby)), primary)
}

#[test]
fn a_standby_whose_connection_has_just_been_started_is_not_stale_yet() {
    let with = |io, io_errno| role::fitness(&receiving(io, io_errno)).is_fit();
    assert!(with(IoThread::Running, 0) && with(IoThread::Connecting, 0));
    assert!(!with(IoThread::Connecting, 2003) && !with(IoThread::Stopped, 0));
}

#[test]
fn a_standby_that_is_refused_by_its_primary_is_told_of() {
    let with = |io, io_errno| decide(&receiving(io, io_errno), CAREFUL);
    assert_eq!(with(IoThread::Connecting, 0), Decision::Stay("standby"));
    // A wrong password.
    let refused = with(IoThread::Connecting, 1045);
    assert!(
        matches!(&refused, Decision::Wait(why) if why.contains("Last_IO_Error")),
        "{refused:?}"
    );
}

#[test]
fn a_standby_that_cannot_write_is_unfit_while_there_is_a_primary() {
    let primary = there(true, answering(server(true, 5, "there", "0-2-10")));
    let mut standby = server(false, 5, "there", "0-2-10");
    standby.channels = vec![channel("0-2-10")];
    let mut look = seen(here(false, answering(standby)), primary);
    assert!(role::fitness(&look).is_fit());
    look.unwritable = Some("/var/lib/x: no space".to_owned());
    let unfit = role::fitness(&look);
    assert!(!unfit.is_fit() && unfit.into_reason().contains("no space"));
    assert!(matches!(decide(&look, CAREFUL), Decision::Stay(_)));
    // Once the primary is gone it is the only one that is left, and its journal goes elsewhere.
    look.peers[0].contact = Contact::Silent;
    assert!(role::fitness(&look).is_fit());
    look.local.vip = Known::Yes;
    assert!(matches!(decide(&look, CAREFUL), Decision::Promote(_)));
    // A primary goes on.
    let mut alone = seen(here(true, primary_here()), Contact::Silent);
    alone.unwritable = look.unwritable;
    assert!(role::fitness(&alone).is_fit());
}

#[test]
fn a_host_that_hangs_is_taken_over_from_while_the_proof_holds() {
    let mut look = receiving_standby();
    look.peers[0].contact = Contact::HostUp;
    let plan = take_over(&look, Intent::Audit).unwrap();
    let peer = "there".to_owned();
    assert_eq!(plan.steps[0], Step::StopReceivingFrom { peer });
    assert_eq!(plan.unfenced, ["there"]);
    assert!(plan.rests_on_proof);
    look.peers[0].proof = Some(OLD);
    assert!(take_over(&look, Intent::Audit).is_err());
    look.peers[0].proof = Some(FRESH);
    // Both threads stopped: what was received could not be applied any more.
    if let Database::Answering(me) = &mut look.local.database {
        me.channels[0].sql_running = false;
    }
    assert!(take_over(&look, Intent::Audit).is_err());
}

#[test]
fn the_last_primary_opens_again_alone_only_where_no_peer_can_have_opened() {
    let mut look = seen(here(true, closed("here", "0-1-10")), Contact::Silent);
    look.peers[0].proof = None;
    let refused = take_over(&look, Intent::Audit).unwrap_err();
    assert!(!refused.own_data(), "it keeps the VIP and serves reads");
    look.alone_at = Some(5);
    // With its commits waiting, in case a peer saw it closed a moment ago: the resident program lets them go.
    assert!(take_over(&look, Intent::Audit).unwrap().bound);
    // Of another epoch it says nothing.
    look.alone_at = Some(4);
    assert!(take_over(&look, Intent::Audit).is_err());
    look.peers[0].proof = Some(FRESH);
    assert!(take_over(&look, Intent::Audit).unwrap().bound);
    look.peers[0].contact = there(false, closed("here", "0-1-10"));
    assert!(take_over(&look, Intent::Audit).unwrap().bound);
}

#[test]
fn a_loss_that_the_site_accepts_is_counted_from_what_is_known() {
    let rules = Rules {
        loss_limit: 3,
        ..Rules::default()
    };
    let mut look = receiving_standby();
    look.peers[0].proof = None;
    let plan = |look: &Observation| {
        plan_promotion(look, PromotionKind::TakeOver, Intent::Audit.limits(rules))
    };
    // Nothing is known to count from.
    assert!(plan(&look).is_err());
    for (last, lost) in [("0-2-10", Some(0)), ("0-2-13", Some(3)), ("0-2-14", None)] {
        look.peers[0].last_primary = Some(LastPrimary {
            history: last.parse().unwrap(),
            semi_sync: false,
            pledges: true,
        });
        assert_eq!(
            plan(&look).ok().map(|plan| plan.accepted_loss),
            lost,
            "{last}"
        );
    }
}

#[test]
fn a_stale_standby_may_not_hold_the_vip() {
    let mut look = receiving_standby();
    look.peers[0].proof = None;
    assert!(role::fitness(&look).is_fit());
    look.stale_since = Some("2026-11-27 03:12:09".to_owned());
    for contact in [
        Contact::Silent,
        there(true, answering(server(true, 5, "there", "0-2-10"))),
    ] {
        look.peers[0].contact = contact;
        let why = role::fitness(&look);
        assert!(!why.is_fit());
        assert!(why.into_reason().contains("may lack writes"));
    }
    // On the primary such a note is of a time before it opened.
    look.local.database = primary_here();
    assert!(role::fitness(&look).is_fit() || look.peers[0].writable());
}

#[test]
fn a_lone_node_whose_own_data_forbid_it_rests_without_the_vip() {
    let mut me = server(false, 5, "there", "0-1-10");
    me.channels = vec![channel("0-1-12")];
    me.channels[0].sql_errno = 1062;
    for entitled in [true, false] {
        let look = |contact| seen(here(entitled, answering(me.clone())), contact);
        let alone = look(Contact::Silent);
        let forbidden = forbidden_by_own_data(&alone, Rules::default());
        assert_eq!(forbidden, Some(Refusal::SqlError { errno: 1062 }));
        // Who has the VIP asks for it, and is told the same.
        let told = refusal(Intent::Audit, &alone, Rules::default());
        assert_eq!(told, forbidden.filter(|_| entitled));
        // With a primary in reach it is a standby as any other.
        let primary = there(true, answering(server(true, 5, "there", "0-1-12")));
        assert_eq!(
            forbidden_by_own_data(&look(primary), Rules::default()),
            None
        );
    }
    // What a peer may change does not count.
    let mut may_lack = seen(here(false, closed("there", "0-1-10")), Contact::Silent);
    may_lack.peers[0].proof = Some(OLD);
    assert_eq!(forbidden_by_own_data(&may_lack, Rules::default()), None);
}
