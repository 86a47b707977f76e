//! The servers that faults are tried on: a Kafka with short sessions, and ways to it that can be cut.

use std::collections::BTreeMap;

use anyhow::Context;
use highwater_tests::platform::{Place, Platform};
use highwater_tests::proxy::Proxy;
use highwater_tests::stack::{folder_of_run, shared};
use local_stack::kafka::BrokerOptions;
use local_stack::{Stack, StackOptions};
use tokio::sync::OnceCell;

/// Ways to the shared Kafka: each test that cuts one has its own.
const WAYS: [&str; 2] = ["CUT", "WIRE"];

/// A session that is over soon, and requests that are given up soon.
pub(crate) const SHORT: &str = "[kafka.properties]\n\"session.timeout.ms\" = \"3000\"\n\
    \"heartbeat.interval.ms\" = \"500\"\n\"socket.timeout.ms\" = \"6000\"\n\"reconnect.backoff.max.ms\" = \"1000\"";

/// The same of the protocol in which the broker says how long a session is.
const SHORT_OF_BROKER: &str = "[kafka.properties]\n\"group.protocol\" = \"consumer\"\n\"socket.timeout.ms\" = \"6000\"\n\
    \"reconnect.backoff.max.ms\" = \"1000\"";

/// How a group gives partitions to its members.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Assignor {
    /// Step by step: nobody lets go of what it keeps.
    Cooperative,
    /// Everybody lets go of everything at each rebalance.
    Eager,
    /// Kafka's newer protocol: the broker decides.
    Broker,
}

impl Assignor {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Cooperative, Self::Eager, Self::Broker];

    /// The section of the configuration that asks for it, with short sessions.
    pub(crate) fn properties(self) -> String {
        match self {
            Self::Cooperative => SHORT.to_owned(),
            Self::Eager => format!("{SHORT}\n\"partition.assignment.strategy\" = \"range\""),
            Self::Broker => SHORT_OF_BROKER.to_owned(),
        }
    }
}

/// A Kafka, and proxies that lead to it.
pub(crate) struct Ground {
    stack: Stack,
    ways: BTreeMap<&'static str, Proxy>,
}

impl Ground {
    /// The one that all faults share that leave it running.
    pub(crate) async fn shared() -> anyhow::Result<&'static Self> {
        static GROUND: OnceCell<Ground> = OnceCell::const_new();
        GROUND.get_or_try_init(|| Self::with_ways(&WAYS)).await
    }

    async fn with_ways(names: &[&'static str]) -> anyhow::Result<Self> {
        let mut ways = BTreeMap::new();
        for name in names {
            // The port of the listener is known only once it runs.
            ways.insert(*name, Proxy::of_bytes("127.0.0.1:1")?);
        }
        let mut options = StackOptions::on_free_ports(folder_of_run()?);
        options.clickhouse_url = shared().await?.addresses().clickhouse.clone();
        options.broker = BrokerOptions {
            listeners: ways
                .iter()
                .map(|(name, proxy)| ((*name).to_owned(), proxy.address()))
                .collect(),
            settings: short_sessions(),
        };
        let stack = Stack::start(&options).await?;
        let kafka = stack.kafka().context("it runs no Kafka")?;
        for listener in kafka.listeners() {
            let proxy = ways.get(listener.name.as_str()).context("no such way")?;
            proxy.lead_to(&listener.address.to_string())?;
        }
        Ok(Self { stack, ways })
    }

    /// Kafka's address.
    pub(crate) fn brokers(&self) -> &str {
        &self.stack.addresses().kafka
    }

    /// ClickHouse's URL.
    pub(crate) fn clickhouse(&self) -> &str {
        &self.stack.addresses().clickhouse
    }

    /// A way to Kafka.
    pub(crate) fn way(&self, name: &str) -> anyhow::Result<&Proxy> {
        self.ways.get(name).context("no such way")
    }

    /// A platform here whose query API runs, and nothing else.
    pub(crate) async fn platform(&self) -> anyhow::Result<Platform> {
        let mut platform = Platform::on(self.brokers(), self.clickhouse()).await?;
        platform.start_serving().await?;
        Ok(platform)
    }

    /// The same, with a proxy before ClickHouse and a place whose processes go through it.
    pub(crate) async fn behind_proxy(&self) -> anyhow::Result<(Platform, Proxy, Place)> {
        let platform = self.platform().await?;
        let (proxy, place) = proxied(&platform)?;
        Ok((platform, proxy, place))
    }
}

/// What a broker must be told before it takes members with [`SHORT`] sessions.
pub(crate) fn short_sessions() -> Vec<(String, String)> {
    let settings = [
        ("group.min.session.timeout.ms", "1000"),
        ("group.consumer.min.session.timeout.ms", "1000"),
        ("group.consumer.session.timeout.ms", "3000"),
        ("group.consumer.min.heartbeat.interval.ms", "500"),
        ("group.consumer.heartbeat.interval.ms", "500"),
    ];
    settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// A proxy before ClickHouse, and a place whose processes go through it.
pub(crate) fn proxied(platform: &Platform) -> anyhow::Result<(Proxy, Place)> {
    let mut place = place(platform);
    let proxy = Proxy::of_statements(&place.clickhouse)?;
    place.clickhouse = proxy.url();
    Ok((proxy, place))
}

/// A place whose processes give up soon what is gone.
pub(crate) fn place(platform: &Platform) -> Place {
    let mut place = platform.place();
    place.more = SHORT.to_owned();
    place
}
