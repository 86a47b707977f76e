//! What the broker is told: one node, small memory, quick groups.

use std::io::Read;
use std::path::Path;

use crate::StackError;
use crate::address::Loopback;
use crate::folder::write_atomically;
use crate::kafka::Listener;

/// The broker's settings.
pub(super) const FILE: &str = "server.properties";
/// The same, for the formatting tool: it writes into [`FORMATTING`].
pub(super) const FORMAT_FILE: &str = "format.properties";
/// Where the data is.
pub(super) const DATA: &str = "data";
/// Where it is while being formatted.
pub(super) const FORMATTING: &str = "data.new";

/// Writes the files that the broker reads at its start.
pub(super) fn write(
    home: &Path,
    broker: Loopback,
    controller: Loopback,
    listeners: &[Listener],
    settings: &[(String, String)],
) -> Result<(), StackError> {
    for (file, data) in [(FILE, DATA), (FORMAT_FILE, FORMATTING)] {
        let text = properties(broker, controller, data) + &further(broker, controller, listeners, settings);
        write_atomically(&home.join(file), text.as_bytes())?;
    }
    write_atomically(&home.join("log4j2.properties"), LOGGING.as_bytes())
}

/// What a test asks for beside the usual. Of two settings of one name Java takes the last.
fn further(broker: Loopback, controller: Loopback, listeners: &[Listener], settings: &[(String, String)]) -> String {
    let mut text = String::new();
    if !listeners.is_empty() {
        let (mut bound, mut told) = (String::new(), String::new());
        let mut protocols = "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT".to_owned();
        for Listener {
            name,
            address,
            advertised,
        } in listeners
        {
            bound += &format!(",{name}://{address}");
            told += &format!(",{name}://{advertised}");
            protocols += &format!(",{name}:PLAINTEXT");
        }
        text += &format!(
            "listeners=PLAINTEXT://{broker},CONTROLLER://{controller}{bound}
advertised.listeners=PLAINTEXT://{broker}{told}
listener.security.protocol.map={protocols}
"
        );
    }
    for (name, value) in settings {
        text += &format!("{name}={value}\n");
    }
    text
}

fn properties(broker: Loopback, controller: Loopback, data: &str) -> String {
    format!(
        "# Written at each start of `highwater up`.
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{controller}
listeners=PLAINTEXT://{broker},CONTROLLER://{controller}
advertised.listeners=PLAINTEXT://{broker}
controller.listener.names=CONTROLLER
log.dirs={data}

# One node keeps one copy of everything, also of Kafka's own topics.
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1

# 50 partitions each are for clusters; every partition costs files and start time.
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
share.coordinator.state.topic.num.partitions=4

# A topic that is misspelt must fail, not appear. Partitions are the dataset's.
auto.create.topics.enable=false
# A broker that was killed may come back when the controller has given its last life up: with the default of 9 s, every start
# after a kill or a power cut would wait for that.
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
# A group of one process has nobody to wait for.
group.initial.rebalance.delay.ms=0
# Events up to the largest `max_event_size` one would set; topics may lower it.
message.max.bytes=33554432
# Deleted topics leave the disk soon.
log.segment.delete.delay.ms=1000
# So does what a topic's retention lets go: one that is written fast would hold minutes of it beyond.
log.retention.check.interval.ms=30000
"
    )
}

/// Everything to a file that is rotated; what goes wrong also to the console, whose end goes into our error messages.
const LOGGING: &str = "# Written at each start of `highwater up`.
status=error
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName=server.log
appender.file.filePattern=server.log.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d{ISO8601} %-5p %c{1}: %m%n
appender.file.policies.type=Policies
appender.file.policies.size.type=SizeBasedTriggeringPolicy
appender.file.policies.size.size=10MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=3
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{ISO8601} %-5p %c{1}: %m %throwable{short.message}%n
appender.console.filter.threshold.type=ThresholdFilter
appender.console.filter.threshold.level=error
rootLogger.level=info
rootLogger.appenderRef.file.ref=file
rootLogger.appenderRef.console.ref=console
";

/// Kafka's form of an id: 16 random bytes in unpadded base64url, 22 characters, not beginning with a dash (the
/// formatting tool would take it for an option).
pub(super) fn new_cluster_id() -> Result<String, StackError> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    std::fs::File::open(path)
        .and_then(|mut random| random.read_exact(&mut bytes))
        .map_err(StackError::file("read", path))?;
    bytes[0] &= 0x7f;
    Ok(base64url(&bytes))
}

fn base64url(bytes: &[u8; 16]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    // 128 bits fill 21 digits of 6 bits and 2 bits of the last.
    let number = u128::from_be_bytes(*bytes);
    (0..22)
        .map(|digit| {
            let six = if digit < 21 {
                number >> (122 - 6 * digit)
            } else {
                number << 4
            } & 0x3f;
            char::from(ALPHABET[usize::try_from(six).unwrap_or_default()])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_ids_are_base64url() {
        // As `base64` and `basenc --base64url` print them.
        assert_eq!(base64url(&[0; 16]), "AAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(base64url(&[0xff; 16]), "_____________________w");
        assert_eq!(base64url(b"highwater-kafka!"), "aGlnaHdhdGVyLWthZmthIQ");
        let id = new_cluster_id().unwrap();
        assert_eq!(id.len(), 22);
        assert!(!id.starts_with('-'));
        assert_ne!(id, new_cluster_id().unwrap());
    }
}
