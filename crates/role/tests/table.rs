//! The decision table of docs/failover.md: each row by name, and every combination at once.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use role::{
    Channel, Contact, CrashRecovery, Database, Decision, Epoch, IoThread, LastPrimary, Limits,
    NodeView, Observation, PeerView, Policy, PromotionKind, SemiSync, Server, Step, crash_recovery,
    decide, plan_promotion,
};

const CAREFUL: Policy = Policy {
    promote_unmet_after_boot: false,
    maintenance: false,
};
const LIMITS: Limits = Limits {
    loss: 0,
    accept_loss: false,
    force: false,
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
        vip: entitled,
        keepalived: true,
        database,
    }
}

fn there(entitled: bool, database: Database) -> Contact {
    Contact::Node(Box::new(NodeView {
        name: "there".to_owned(),
        vip: entitled,
        keepalived: true,
        database,
    }))
}

fn seen(local: NodeView, contact: Contact) -> Observation {
    Observation {
        local,
        peers: vec![PeerView {
            name: "there".to_owned(),
            contact,
            met: true,
            last_primary: None,
        }],
        highest_epoch: 0,
        witness: None,
        granted_to: None,
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
fn an_address_without_keepalived_is_removed() {
    let mut look = seen(here(true, primary_here()), Contact::Silent);
    look.local.keepalived = false;
    assert_eq!(decide(&look, CAREFUL), Decision::RemoveAddress);
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
    };
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
    let mut all = vec![Database::Down, Database::Silent, Database::Starting];
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
        contacts.push(there(false, database));
    }
    for database in databases("here") {
        for (vip, keepalived) in [(true, true), (false, true), (true, false)] {
            for contact in &contacts {
                for (met, highest_epoch, witness) in [
                    (true, 0, None),
                    (false, 0, None),
                    (true, 6, Some(false)),
                    (false, 6, Some(true)),
                ] {
                    for granted in [None, Some("there"), Some("here")] {
                        let mut local = here(vip, database.clone());
                        local.keepalived = keepalived;
                        let mut look = seen(local, contact.clone());
                        look.peers[0].met = met;
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
            assert!(look.local.entitled(), "promotes without the VIP: {look:?}");
            assert!(!peer.writable(), "promotes beside a primary: {look:?}");
            let me = me.unwrap();
            assert!(
                me.epoch_number() >= newer || me.unapplied(),
                "opens old data: {look:?}"
            );
            assert!(
                peer.met || peer.server().is_some(),
                "promotes unmet: {look:?}"
            );
            if let Ok(plan) = plan_promotion(look, PromotionKind::TakeOver, LIMITS) {
                ordered(&plan.steps);
            }
        }
        Decision::SwitchOver { .. } => {
            assert!(
                look.local.entitled() && peer.entitled() == Some(false),
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
    if me.is_some_and(|m| m.writable) && peer.writable() && look.local.keepalived {
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
            Step::FencePeer { .. }
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
    let look = |standby: &Server| {
        seen(
            here(true, primary_here()),
            there(false, answering(standby.clone())),
        )
    };
    standby.channels = vec![channel("0-1-10")];
    let fit = |look: &Observation| role::peer_fitness(look, &look.peers[0]).is_fit();
    assert!(fit(&look(&standby)));
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
