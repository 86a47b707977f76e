//! The local stack as a user has it: `highwater up` on real Kafka and the real ClickHouse engine, killed and restarted.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use highwater_tests::stack::{PATIENCE, Site, Up, shared, signal, unique, until};
use local_stack::Addresses;
use local_stack::clickhouse::{Access, answers, execute};
use local_stack::process::record::Record;
use local_stack::topics::{self, Outcome, Topic};
use rdkafka::ClientConfig;
use rdkafka::Message;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

async fn produce(brokers: &str, topic: &str, value: &str) -> anyhow::Result<()> {
    let producer: FutureProducer = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let record = FutureRecord::<(), _>::to(topic).payload(value).partition(0);
    producer.send(record, PATIENCE).await.map_err(|(error, _)| error)?;
    Ok(())
}

const NO_BROKER: RDKafkaErrorCode = RDKafkaErrorCode::BrokerTransportFailure;
const NO_BROKERS: RDKafkaErrorCode = RDKafkaErrorCode::AllBrokersDown;

/// The first record of partition 0.
async fn first_value(brokers: &str, topic: &str) -> anyhow::Result<String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", unique("group"))
        .create()?;
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, 0, Offset::Beginning)?;
    consumer.assign(&from)?;
    let poll = move || {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match consumer.poll(PATIENCE).context("no record")? {
                Ok(record) => return Ok(String::from_utf8_lossy(record.payload().unwrap_or_default()).into_owned()),
                // librdkafka tells of a broker that does not answer yet, and tries again by itself.
                Err(error) if matches!(error.rdkafka_error_code(), Some(NO_BROKERS | NO_BROKER)) => {
                    ensure!(Instant::now() < deadline, "no record: {error}");
                }
                Err(error) => return Err(error.into()),
            }
        }
    };
    tokio::task::spawn_blocking(poll).await?
}

async fn query(url: &str, sql: &str) -> anyhow::Result<String> {
    let response = reqwest::Client::new().post(url).body(sql.to_owned()).send().await?;
    Ok(response.error_for_status()?.text().await?.trim().to_owned())
}

async fn gone(processes: &[Record]) -> anyhow::Result<()> {
    until("all processes are gone", || !processes.iter().any(Record::runs)).await
}

#[tokio::test]
async fn a_record_goes_through_kafka_and_a_row_through_clickhouse() -> anyhow::Result<()> {
    let Addresses { kafka, clickhouse, .. } = shared().await?.addresses();
    let (topic, database) = (unique("events"), unique("db"));
    let wanted = Topic::of_dataset(&topic, 3, 1 << 20);
    assert_eq!(
        topics::ensure(kafka, &[], &wanted).await?,
        [Outcome::Created, Outcome::Created]
    );
    assert_eq!(
        topics::ensure(kafka, &[], &wanted).await?,
        [Outcome::There, Outcome::There]
    );
    produce(kafka, &topic, "one event").await?;
    assert_eq!(first_value(kafka, &topic).await?, "one event");

    let access = Access::default();
    execute(clickhouse, &access, &format!("CREATE DATABASE {database}")).await?;
    execute(
        clickhouse,
        &access,
        &format!("CREATE TABLE {database}.t (x UInt8) ENGINE = MergeTree ORDER BY x"),
    )
    .await?;
    execute(clickhouse, &access, &format!("INSERT INTO {database}.t VALUES (42)")).await?;
    assert_eq!(query(clickhouse, &format!("SELECT x FROM {database}.t")).await?, "42");
    let refused = execute(clickhouse, &access, "SELECT no_such_column")
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("no_such_column"), "{refused}");
    Ok(())
}

#[tokio::test]
async fn a_topic_that_is_not_as_its_dataset_needs_it_is_named() -> anyhow::Result<()> {
    let kafka = &shared().await?.addresses().kafka;
    let topic = unique("partitions");
    topics::ensure(kafka, &[], &Topic::of_dataset(&topic, 3, 1 << 20)).await?;
    let refused = topics::ensure(kafka, &[], &Topic::of_dataset(&topic, 4, 1 << 20))
        .await
        .unwrap_err();
    let expected = format!(
        "topic {topic} has 3 partitions and its dataset says 4: write partitions = 3 in the dataset, or change the topic"
    );
    assert_eq!(refused.to_string(), expected);

    let topic = unique("compacted");
    let admin: AdminClient<_> = ClientConfig::new().set("bootstrap.servers", kafka).create()?;
    let compacted = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set("cleanup.policy", "compact,delete");
    admin.create_topics([&compacted], &AdminOptions::new()).await?;
    let refused = topics::ensure(kafka, &[], &Topic::of_dataset(&topic, 1, 1 << 20))
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.starts_with(&format!("topic {topic} is compacted")), "{refused}");
    Ok(())
}

#[tokio::test]
async fn events_larger_than_kafkas_default_fit_where_the_dataset_allows_them() -> anyhow::Result<()> {
    let kafka = &shared().await?.addresses().kafka;
    let topic = unique("large");
    topics::ensure(kafka, &[], &Topic::of_dataset(&topic, 1, 3 << 20)).await?;
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka)
        .set("message.max.bytes", "8000000")
        .create()?;
    let event = "x".repeat(3 << 20);
    let record = FutureRecord::<(), _>::to(&topic).payload(&event);
    producer.send(record, PATIENCE).await.map_err(|(error, _)| error)?;
    Ok(())
}

#[tokio::test]
async fn addresses_are_reachable_and_data_survives_a_restart() -> anyhow::Result<()> {
    let site = Site::new()?;
    let mut up = site.start(&["up", "--output", "json"])?;
    let first = up.ready().await?;
    answers(&first.clickhouse).await.map_err(anyhow::Error::msg)?;
    produce(&first.kafka, "flights", "kept").await?;
    let tables = "SELECT count() FROM system.tables WHERE database = 'highwater'";
    assert_ne!(query(&first.clickhouse, tables).await?, "0");
    query(
        &first.clickhouse,
        "CREATE TABLE highwater.kept (x UInt8) ENGINE = MergeTree ORDER BY x",
    )
    .await?;
    query(&first.clickhouse, "INSERT INTO highwater.kept VALUES (7)").await?;
    let children = up.children();
    assert_eq!(children.len(), 2, "Kafka and ClickHouse");
    up.stop().await?;
    gone(&children).await?;
    assert!(
        !site.data().join("addresses.json").exists(),
        "addresses of a stack that is gone"
    );
    assert_eq!(
        std::fs::read_dir(site.data().join("run"))?.count(),
        0,
        "records of processes that are gone"
    );

    let mut up = site.start(&["up"])?;
    let second = up.ready().await?;
    assert_eq!(first_value(&second.kafka, "flights").await?, "kept");
    assert_eq!(query(&second.clickhouse, "SELECT x FROM highwater.kept").await?, "7");
    up.stop().await?;

    let mut up = site.start(&["up", "--fresh"])?;
    let third = up.ready().await?;
    assert_eq!(query(&third.clickhouse, "EXISTS highwater.kept").await?, "0");
    up.stop().await
}

#[tokio::test]
async fn a_killed_up_leaves_no_child_and_the_next_start_works() -> anyhow::Result<()> {
    let site = Site::new()?;
    let mut up = site.up().await?;
    let addresses = up.ready().await?;
    produce(&addresses.kafka, "flights", "kept").await?;
    let children = up.children();
    assert_eq!(children.len(), 2, "Kafka and ClickHouse");
    up.signal("KILL")?;
    up.ended().await?;
    gone(&children).await?;

    // The records stayed. One now names a number that a stranger has got meanwhile, one a process that hangs on.
    let run = site.data().join("run");
    let mut stranger = Command::new("sleep").arg("1000").process_group(0).spawn()?;
    let mut leftover = Command::new("sleep").arg("1000").process_group(0).spawn()?;
    let truth = Record::of("clickhouse", stranger.id()).context("it runs")?;
    let not_it = Record {
        started: truth.started + 1,
        ..truth.clone()
    };
    std::fs::write(run.join("clickhouse.json"), serde_json::to_vec(&not_it)?)?;
    let left = Record::of("kafka", leftover.id()).context("it runs")?;
    std::fs::write(run.join("kafka.json"), serde_json::to_vec(&left)?)?;

    let mut up = site.up().await?;
    assert_eq!(first_value(&up.ready().await?.kafka, "flights").await?, "kept");
    assert!(truth.runs(), "a stranger was ended");
    assert!(!left.runs(), "a leftover was not ended");
    up.stop().await?;
    stranger.kill()?;
    stranger.wait()?;
    leftover.wait()?;
    Ok(())
}

#[tokio::test]
async fn a_signal_during_the_start_ends_it_with_nothing_left() -> anyhow::Result<()> {
    let site = Site::new()?;
    let mut up = site.start(&["up"])?;
    let mut children = Vec::new();
    until("a child runs", || {
        children = up.children();
        !children.is_empty() || up.said().contains("error")
    })
    .await?;
    up.signal("INT")?;
    let status = up.ended().await?;
    assert!(status.success(), "{status}: {}", up.said());
    gone(&children).await
}

#[tokio::test]
async fn a_server_that_ends_by_itself_ends_the_stack() -> anyhow::Result<()> {
    let site = Site::new()?;
    let mut up = site.up().await?;
    let children = up.children();
    let kafka: Record = serde_json::from_slice(&std::fs::read(site.data().join("run/kafka.json"))?)?;
    signal(kafka.pid, "KILL")?;
    let status = up.ended().await?;
    assert_eq!(status.code(), Some(1));
    assert!(
        up.said()
            .contains("Kafka ended by itself (signal: 9 (SIGKILL)); the end of its log"),
        "{}",
        up.said()
    );
    gone(&children).await
}

#[tokio::test]
async fn a_second_up_on_a_folder_names_the_first() -> anyhow::Result<()> {
    let site = Site::new()?;
    let up = site.up().await?;
    let (code, _, said) = site.run(&["up"]).await?;
    assert_eq!(code, Some(1));
    let expected = format!("is in use by another `highwater up` (pid {})", up.pid());
    assert!(said.contains(&expected), "{said}");
    assert!(site.data().join("addresses.json").exists(), "the first one's addresses");
    up.stop().await
}

#[tokio::test]
async fn servers_that_run_already_are_used_and_left_alone() -> anyhow::Result<()> {
    let Addresses { kafka, clickhouse, .. } = shared().await?.addresses();
    let site = Site::with_addresses(kafka, clickhouse)?;
    let config = std::fs::read_to_string(site.path().join("highwater.toml"))?;
    std::fs::write(
        site.path().join("highwater.toml"),
        config + &format!("database = \"{}\"\n", unique("used")),
    )?;
    let mut up: Up = site.start(&["up"])?;
    let addresses = up.ready().await?;
    assert_eq!((&addresses.kafka, &addresses.clickhouse), (kafka, clickhouse));
    assert_eq!(up.children(), []);
    up.stop().await?;
    answers(clickhouse).await.map_err(anyhow::Error::msg)
}

#[tokio::test]
async fn a_port_that_something_else_has_is_one_clear_sentence() -> anyhow::Result<()> {
    // Accepts connections and never answers.
    let stranger = TcpListener::bind(("127.0.0.1", 0))?;
    let port = stranger.local_addr()?.port();
    let me = format!("pid {}", std::process::id());

    let site = Site::with_addresses(&format!("127.0.0.1:{port}"), &shared().await?.addresses().clickhouse)?;
    let (code, _, said) = site.run(&["up"]).await?;
    assert_eq!(code, Some(1));
    let expected = format!("127.0.0.1:{port} is taken by {me} (");
    assert!(
        said.contains(&expected) && said.contains("does not answer as Kafka"),
        "{said}"
    );
    assert!(
        said.contains("choose another port with kafka.brokers (port 0 picks a free one)"),
        "{said}"
    );

    let site = Site::with_addresses(&shared().await?.addresses().kafka, &format!("http://127.0.0.1:{port}"))?;
    let (code, _, said) = site.run(&["up"]).await?;
    assert_eq!(code, Some(1));
    assert!(
        said.contains(&expected) && said.contains("does not answer as ClickHouse"),
        "{said}"
    );
    Ok(())
}

#[tokio::test]
async fn a_folder_of_somebody_else_is_not_touched() -> anyhow::Result<()> {
    let site = Site::new()?;
    std::fs::create_dir(site.data())?;
    std::fs::write(site.data().join("thesis.txt"), "irreplaceable")?;
    for arguments in [&["up"][..], &["up", "--fresh"]] {
        let (code, _, said) = site.run(arguments).await?;
        assert_eq!(code, Some(1));
        assert!(said.contains("holds files that `highwater up` did not make"), "{said}");
    }
    assert_eq!(std::fs::read_dir(site.data())?.count(), 1);
    Ok(())
}

/// A cache folder whose libchdb is the real one, and whose Kafka is a copy, to be spoiled, or missing.
fn cache_without(kafka: Kafka, to: &Path) -> anyhow::Result<()> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(std::path::PathBuf::from)
        .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?;
    std::fs::create_dir_all(to.join("highwater"))?;
    for entry in std::fs::read_dir(cache.join("highwater"))? {
        let entry = entry?;
        let (name, target) = (entry.file_name(), to.join("highwater").join(entry.file_name()));
        if !name.to_string_lossy().starts_with("kafka-") {
            std::os::unix::fs::symlink(entry.path(), target)?;
        } else if kafka == Kafka::Copied {
            std::fs::create_dir(&target)?;
            for jar in std::fs::read_dir(entry.path())? {
                let jar = jar?;
                std::fs::copy(jar.path(), target.join(jar.file_name()))?;
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Kafka {
    Copied,
    Missing,
}

#[tokio::test]
async fn a_tool_that_is_missing_is_named_with_how_to_get_it() -> anyhow::Result<()> {
    let site = Site::new()?;
    let (tools, cache) = (site.path().join("bin"), site.path().join("cache"));
    std::fs::create_dir(&tools)?;
    cache_without(Kafka::Missing, &cache)?;
    let said = async || -> anyhow::Result<String> {
        let mut command = tokio::process::Command::from(site.highwater(&["up"])?);
        command
            .env("PATH", &tools)
            .env("XDG_CACHE_HOME", &cache)
            .env_remove("JAVA_HOME")
            .kill_on_drop(true);
        let output = command.output().await?;
        ensure!(output.status.code() == Some(1), "{output:?}");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let without_java = said().await?;
    assert!(
        without_java.contains("java is missing, Kafka runs on it: install a Java 17 runtime"),
        "{without_java}"
    );

    let path = std::env::var_os("PATH").context("a PATH")?;
    for tool in ["sh", "dirname", "uname", "sha256sum", "find", "wc", "java"] {
        let found = std::env::split_paths(&path)
            .map(|folder| folder.join(tool))
            .find(|file| file.is_file());
        std::os::unix::fs::symlink(found.with_context(|| format!("no {tool} on PATH"))?, tools.join(tool))?;
    }
    let without_maven = said().await?;
    assert!(
        without_maven.contains("mvn is missing: install Maven"),
        "{without_maven}"
    );

    std::fs::remove_file(tools.join("java"))?;
    let old = "#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n";
    std::fs::write(tools.join("java"), old)?;
    std::fs::set_permissions(tools.join("java"), PermissionsExt::from_mode(0o755))?;
    let too_old = said().await?;
    assert!(
        too_old.contains("java is Java 11, Kafka needs 17: install"),
        "{too_old}"
    );
    Ok(())
}

#[tokio::test]
async fn kafka_starts_with_the_archive_of_its_classes() -> anyhow::Result<()> {
    let pid = shared().await?.kafka().context("it runs no Kafka")?.process().pid();
    let mapped = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let is_ours = |line: &&str| line.ends_with(".jsa") && line.contains("/highwater/kafka-");
    ensure!(mapped.lines().any(|line| is_ours(&line)), "no archive in\n{mapped}");
    Ok(())
}

#[tokio::test]
async fn a_jar_that_is_not_the_pinned_one_is_refused() -> anyhow::Result<()> {
    local_stack::fetch::kafka_jars().await?;
    let site = Site::new()?;
    let cache = site.path().join("cache");
    cache_without(Kafka::Copied, &cache)?;
    let kafka = std::fs::read_dir(cache.join("highwater"))?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("kafka-"))
        .context("the copied jars")?
        .path();
    let refused = async |what: &str| -> anyhow::Result<()> {
        let mut command = tokio::process::Command::from(site.highwater(&["up"])?);
        let output = command
            .env("XDG_CACHE_HOME", &cache)
            .kill_on_drop(true)
            .output()
            .await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1), "{what}: {said}");
        ensure!(
            said.contains("are not the pinned ones (jars.sha256): remove that folder"),
            "{what}: {said}"
        );
        Ok(())
    };

    std::fs::write(kafka.join("extra.jar"), "anything")?;
    refused("a jar too many").await?;
    std::fs::remove_file(kafka.join("extra.jar"))?;
    let jar = kafka.join("re2j-1.8.jar");
    let mut bytes = std::fs::read(&jar)?;
    bytes[1000] ^= 1;
    std::fs::write(&jar, bytes)?;
    refused("one bit is wrong").await?;
    std::fs::remove_file(&jar)?;
    refused("a jar too few").await
}

#[tokio::test]
async fn a_mask_key_that_is_not_set_is_told_before_anything_starts() -> anyhow::Result<()> {
    let site = Site::new()?;
    let masked = "[dataset.flights]\nevent_time = \"at\"\n[dataset.flights.fields]\nat = \"timestamp\"\ntail = \"string\"\n\
                  [dataset.flights.mask]\ntail = { hash = \"HIGHWATER_NO_SUCH_KEY\" }\n";
    std::fs::write(site.path().join("definitions/flights.toml"), masked)?;
    for command in [
        "up",
        "speed",
        "archive",
        "serve",
        "status",
        "reconcile",
        "batch run",
        "batch schedule",
    ] {
        let (code, _, said) = site.run(&command.split(' ').collect::<Vec<_>>()).await?;
        assert_eq!(code, Some(2), "{said}");
        assert!(
            said.contains("flights.toml:7:8: field `tail` is to be hashed with the key in"),
            "{said}"
        );
        assert!(said.contains("HIGHWATER_NO_SUCH_KEY, which is not set"), "{said}");
    }
    // Where nothing is read or looked for, that is no mistake.
    let (code, said, _) = site.run(&["check"]).await?;
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("flights.toml:7:8: field `tail`") && said.contains("fingerprints"),
        "{said}"
    );
    assert!(!site.data().exists(), "nothing was started");
    Ok(())
}
