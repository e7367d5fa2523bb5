//! Sets of GTIDs, compared per (domain, server), as `@@gtid_binlog_state` lists them.
//!
//! Comparing only the last position of a domain passes a diverged node (0-1-26 against
//! 0-2-29), so histories are compared per originating server.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gtid {
    /// `gtid_domain_id`
    pub domain: u32,
    /// `server_id` of the server that wrote it.
    pub server: u32,
    /// Grows within the domain.
    pub sequence: u64,
}

impl fmt::Display for Gtid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.domain, self.server, self.sequence)
    }
}

/// The highest sequence number for each (domain, server).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GtidSet(BTreeMap<(u32, u32), u64>);

/// Text that is not a list of GTIDs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a list of GTIDs such as 0-1-26,0-2-29")]
pub struct GtidError {
    text: String,
}

impl GtidSet {
    fn gtids(&self) -> impl Iterator<Item = Gtid> + '_ {
        self.0.iter().map(|((domain, server), sequence)| Gtid {
            domain: *domain,
            server: *server,
            sequence: *sequence,
        })
    }

    /// Whether every transaction of `other` is here too.
    pub fn contains(&self, other: &Self) -> bool {
        other.gtids().all(|gtid| self.includes(gtid))
    }

    /// What `other` has and this set has not: the highest sequence number for each server.
    pub fn missing_from(&self, other: &Self) -> Self {
        other.gtids().filter(|gtid| !self.includes(*gtid)).collect()
    }

    /// Without what the server of this id has written.
    pub fn without_server(&self, server_id: u32) -> Self {
        self.gtids()
            .filter(|gtid| gtid.server != server_id)
            .collect()
    }

    /// The union: the higher number wins.
    pub fn union(&self, other: &Self) -> Self {
        self.gtids().chain(other.gtids()).collect()
    }

    /// How many sequence numbers `other` is ahead, summed over domains. In strict mode the
    /// numbers of a domain grow by one, so this counts transactions.
    pub fn transactions_behind(&self, other: &Self) -> u64 {
        let last = |set: &Self| {
            let mut domains: BTreeMap<u32, u64> = BTreeMap::new();
            for ((domain, _), sequence) in &set.0 {
                let highest = domains.entry(*domain).or_default();
                *highest = (*highest).max(*sequence);
            }
            domains
        };
        let mine = last(self);
        last(other)
            .iter()
            .map(|(domain, sequence)| {
                sequence.saturating_sub(mine.get(domain).copied().unwrap_or_default())
            })
            .sum()
    }

    /// Whether the transaction, or a later one of the same server, is here.
    pub fn includes(&self, gtid: Gtid) -> bool {
        self.0
            .get(&(gtid.domain, gtid.server))
            .is_some_and(|last| *last >= gtid.sequence)
    }

    /// Takes a transaction in.
    pub fn add(&mut self, gtid: Gtid) {
        let last = self.0.entry((gtid.domain, gtid.server)).or_default();
        *last = gtid.sequence.max(*last);
    }

    /// The last transaction of each domain: a position, as replication starts from it.
    pub fn position(&self) -> Self {
        let mut last: BTreeMap<u32, Gtid> = BTreeMap::new();
        for gtid in self.gtids() {
            let newest = last.entry(gtid.domain).or_insert(gtid);
            if newest.sequence < gtid.sequence {
                *newest = gtid;
            }
        }
        last.into_values().collect()
    }

    /// What of it `other` has, too.
    pub fn within(&self, other: &Self) -> Self {
        self.gtids().filter(|gtid| other.includes(*gtid)).collect()
    }

    /// As `gtid_binlog_state` takes it: the last of a domain counts as the one that was written last.
    pub fn in_order(&self) -> String {
        let mut gtids: Vec<Gtid> = self.gtids().collect();
        gtids.sort_by_key(|gtid| (gtid.domain, gtid.sequence));
        let texts: Vec<String> = gtids.iter().map(ToString::to_string).collect();
        texts.join(",")
    }

    /// Whether the set is empty: a server that never wrote.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Gtid> for GtidSet {
    fn from_iter<I: IntoIterator<Item = Gtid>>(gtids: I) -> Self {
        let mut set = Self::default();
        for gtid in gtids {
            set.add(gtid);
        }
        set
    }
}

impl FromStr for GtidSet {
    type Err = GtidError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || GtidError {
            text: text.to_owned(),
        };
        let mut set = Self::default();
        for gtid in text.split(',').map(str::trim).filter(|g| !g.is_empty()) {
            let mut parts = gtid.split('-');
            let domain = parts
                .next()
                .and_then(|p| p.parse().ok())
                .ok_or_else(error)?;
            let server = parts
                .next()
                .and_then(|p| p.parse().ok())
                .ok_or_else(error)?;
            let sequence: u64 = parts
                .next()
                .and_then(|p| p.parse().ok())
                .ok_or_else(error)?;
            if parts.next().is_some() {
                return Err(error());
            }
            set.add(Gtid {
                domain,
                server,
                sequence,
            });
        }
        Ok(set)
    }
}

impl TryFrom<String> for GtidSet {
    type Error = GtidError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<GtidSet> for String {
    fn from(set: GtidSet) -> Self {
        set.to_string()
    }
}

impl fmt::Display for GtidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, gtid) in self.gtids().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{gtid}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> GtidSet {
        text.parse().unwrap()
    }

    #[test]
    fn a_later_position_of_another_server_does_not_hide_divergence() {
        assert!(!set("0-1-25,0-2-29").contains(&set("0-1-26")));
        assert!(set("0-1-26,0-2-29").contains(&set("0-1-26")));
        assert!(set("0-1-26").contains(&set("")));
        assert!(!set("").contains(&set("0-1-1")));
    }

    #[test]
    fn text_and_json_round_trip_and_nonsense_is_named() {
        assert_eq!(set(" 0-2-29, 0-1-26\n").to_string(), "0-1-26,0-2-29");
        for bad in [
            "0-1",
            "0-1-2-3",
            "a-b-c",
            "0-1--2",
            "0-1-99999999999999999999999",
        ] {
            assert!(
                bad.parse::<GtidSet>()
                    .unwrap_err()
                    .to_string()
                    .contains(bad)
            );
        }
    }

    #[test]
    fn distance_counts_transactions() {
        assert_eq!(set("0-1-26").transactions_behind(&set("0-1-26,0-2-29")), 3);
        assert_eq!(set("0-1-30").transactions_behind(&set("0-1-26")), 0);
        assert_eq!(
            set("0-1-26")
                .missing_from(&set("0-1-26,0-2-29"))
                .to_string(),
            "0-2-29"
        );
        assert_eq!(
            set("0-1-26,0-2-29,1-1-3").position().to_string(),
            "0-2-29,1-1-3"
        );
        assert_eq!(
            set("0-1-26").union(&set("0-2-29,0-1-3")).to_string(),
            "0-1-26,0-2-29"
        );
    }

    #[test]
    fn a_transaction_is_known_by_its_own_server() {
        let mut known = set("0-1-26,0-2-29");
        let gtid = |server, sequence| Gtid {
            domain: 0,
            server,
            sequence,
        };
        assert!(known.includes(gtid(1, 26)) && known.includes(gtid(2, 1)));
        assert!(!known.includes(gtid(1, 27)) && !known.includes(gtid(3, 1)));
        assert_eq!(set("0-2-29,0-1-30,1-1-1").in_order(), "0-2-29,0-1-30,1-1-1");
        assert_eq!(
            set("0-1-5,0-3-7").within(&set("0-1-6")).to_string(),
            "0-1-5"
        );
        known.add(gtid(1, 30));
        known.add(gtid(1, 28));
        assert_eq!(known.to_string(), "0-1-30,0-2-29");
    }
}
