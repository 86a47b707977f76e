//! What a dataset's rules hide is written nowhere: secrets stand in every field, undeclared path, key, header and broken
//! record of a stream that goes through all layers and commands; then everything that was written is searched.
//!
//! What is open is searched for in the same way and must be found, or the search would prove nothing. The topics that the
//! records were sent to are the users' own.

mod planted;
mod search;
pub(crate) mod spilled;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use highwater_tests::stack::{PATIENCE, Site};
use rdkafka::message::{Header, OwnedHeaders};
use serde_json::{Value, json};
use tokio::time::Instant;

use planted::{CONFIG, DEFINITIONS, KEYS, OPEN, OPEN_EXTRA, SECRET, Sender, person, refused, vaulted};
use search::{Written, anywhere, files, leaks, parquet};

/// Events of each dataset: more than a chunk, so that marks move.
const EVENTS: usize = 40;
const RANGE: &str = "from=2012-12-31T00:00:00Z&to=2013-01-03T00:00:00Z";

/// A site with the datasets, and what its commands said.
struct World {
    site: Site,
    written: Written,
}

impl World {
    fn new() -> anyhow::Result<Self> {
        let mut site = Site::new()?;
        std::fs::write(site.path().join("highwater.toml"), CONFIG)?;
        std::fs::write(site.path().join("definitions/flights.toml"), DEFINITIONS)?;
        std::fs::create_dir(site.path().join("tmp"))?;
        for (name, key) in KEYS {
            site.set(name, key);
        }
        site.set("TMPDIR", &site.path().join("tmp").to_string_lossy());
        site.set("HIGHWATER_LOG", "debug,h2=info,hyper=info,hyper_util=info");
        Ok(Self {
            site,
            written: Written::new(),
        })
    }

    /// What a command says on stdout. All that it says is searched later.
    async fn run(&mut self, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
        let (code, stdout, stderr) = self.site.run(arguments).await?;
        self.written
            .push((format!("stdout of {arguments:?}"), stdout.clone().into_bytes()));
        self.written
            .push((format!("stderr of {arguments:?}"), stderr.into_bytes()));
        Ok((code, stdout))
    }

    async fn json(&mut self, arguments: &[&str]) -> anyhow::Result<Value> {
        let arguments = [arguments, &["--output", "json"]].concat();
        let (_, stdout) = self.run(&arguments).await?;
        serde_json::from_str(&stdout).with_context(|| format!("{arguments:?}: {stdout}"))
    }

    /// What the API answers; searched later too.
    async fn ask(&mut self, url: String) -> anyhow::Result<Vec<u8>> {
        let answer = reqwest::get(&url).await?.bytes().await?.to_vec();
        self.written.push((url, answer.clone()));
        Ok(answer)
    }

    /// Waits until that many people are counted by those layers.
    async fn until_counted(&mut self, api: &str, view: &str, layers: &str, count: u64) -> anyhow::Result<()> {
        let url = format!("{api}/api/v1/views/{view}/query?{RANGE}&measures=people&layers={layers}");
        let began = Instant::now();
        loop {
            let answer = reqwest::get(&url).await?.bytes().await?;
            let answer: Value = serde_json::from_slice(&answer)?;
            let counted = answer["data"][0]["people"].as_u64().unwrap_or_default();
            ensure!(counted <= count, "{counted} of {count} counted: {answer:#}");
            if counted == count {
                return Ok(());
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "never: {count} counted by {layers}: {answer:#}"
            );
            if layers == "batch" {
                self.run(&["batch", "run", "--to-end", "--wait", "--dataset", view])
                    .await?;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until that many records of a dataset have dead letters; their places.
    async fn until_letters(&mut self, dataset: &str, count: usize) -> anyhow::Result<Vec<String>> {
        let began = Instant::now();
        loop {
            let list = self.json(&["dead-letters", "list", dataset]).await?;
            let letters = list["letters"].as_array().context("no list")?;
            let sources = letters.iter().filter_map(|letter| letter["source"].as_str());
            let sources: Vec<_> = sources.map(ToOwned::to_owned).collect();
            if sources.len() == count {
                return Ok(sources);
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "{} of {count} letters: {list:#}",
                sources.len()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The archived events of a dataset, as text, by column.
    async fn archived(&self, dataset: &str) -> anyhow::Result<Vec<BTreeMap<String, String>>> {
        let mut rows = Vec::new();
        for file in files(&self.site.data().join("archive"))? {
            if !is_parquet(&file) || !file.to_string_lossy().contains(&format!("/{dataset}/")) {
                continue;
            }
            for row in parquet(&file).await? {
                let cells = row.split('\u{1}').filter_map(|cell| cell.split_once('='));
                rows.push(cells.map(|(name, value)| (name.to_owned(), value.to_owned())).collect());
            }
        }
        Ok(rows)
    }
}

fn is_parquet(file: &Path) -> bool {
    file.extension().is_some_and(|end| end == "parquet")
}

/// An archived event as a record that says that it is masked.
fn masked_again(row: &BTreeMap<String, String>) -> anyhow::Result<Value> {
    let mut event: Value = serde_json::from_str(row.get("_extra").context("no _extra")?)?;
    for name in ["at", "id", "name", "phone", "address", "seen", "count", "city"] {
        let value = row.get(name).with_context(|| format!("no {name}"))?;
        event[name] = if name == "count" {
            json!(value.parse::<i64>()?)
        } else {
            json!(value)
        };
    }
    event["who"]["login"] = json!(row.get("login").context("no login")?);
    event["born"] =
        json!(chrono::DateTime::parse_from_rfc3339(row.get("born").context("no born")?)?.timestamp_millis());
    event["price"] = json!(row.get("price").context("no price")?);
    Ok(event)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_written_anywhere() -> anyhow::Result<()> {
    let mut world = World::new()?;
    let up = world.site.up().await?;
    let addresses: Value = serde_json::from_slice(&std::fs::read(world.site.data().join("addresses.json"))?)?;
    let address = |name: &str| addresses[name].as_str().map(ToOwned::to_owned).context("no address");
    let (brokers, clickhouse, api) = (address("kafka")?, address("clickhouse")?, address("api")?);

    let sender = Sender::new(&brokers)?;
    let refused = refused();
    for number in 0..EVENTS {
        sender
            .send("people", Some(person(number).to_string().as_bytes()))
            .await?;
        sender
            .send("vault", Some(vaulted(number).to_string().as_bytes()))
            .await?;
        if let Some((value, _)) = refused.get(number) {
            sender.send("people", value.as_deref()).await?;
            sender.send("vault", value.as_deref()).await?;
        }
    }
    for dataset in ["people", "vault"] {
        world
            .until_counted(&api, dataset, "merged", u64::try_from(EVENTS)?)
            .await?;
        world
            .until_counted(&api, dataset, "batch", u64::try_from(EVENTS)?)
            .await?;
        let letters = world.until_letters(dataset, refused.len()).await?;
        for letter in &letters {
            world.run(&["dead-letters", "show", dataset, letter]).await?;
            world.json(&["dead-letters", "show", dataset, letter]).await?;
        }
        let list = world.json(&["dead-letters", "list", dataset]).await?;
        let letters = list["letters"].as_array().into_iter().flatten();
        let found: BTreeSet<_> = letters.filter_map(|letter| letter["reason"].as_str()).collect();
        let wanted: BTreeSet<_> = refused.iter().map(|(_, reason)| *reason).collect();
        assert_eq!(found, wanted, "{dataset}");
        // They come again, are refused again, and still tell nothing.
        world.json(&["dead-letters", "replay", dataset, "--all"]).await?;
        world.until_letters(dataset, 2 * refused.len()).await?;
    }

    // What each rule makes of a value, in the archive.
    let archived = world.archived("people").await?;
    assert_eq!(archived.len(), EVENTS);
    let row = &archived[0];
    for (name, value) in [
        ("name", "***"),
        ("note", ""),
        ("phone", "0170"),
        ("address", "203.0.113.0/24"),
        ("seen", "2012-12-31T00:00:00Z"),
        ("born", "2012-12-31T14:00:00Z"),
        ("via", "***"),
        ("weight", ""),
        ("city", OPEN),
    ] {
        assert_eq!(row.get(name).map(String::as_str), Some(value), "{name} of {row:#?}");
    }
    let is_hash = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(
        ["id", "login", "keyed"]
            .iter()
            .all(|name| row.get(*name).is_some_and(|text| is_hash(text))),
        "{row:#?}"
    );
    let extra: Value = serde_json::from_str(&row["_extra"])?;
    assert!(extra["who"]["email"][0].as_str().is_some_and(is_hash), "{extra:#}");
    assert_eq!(
        extra,
        json!({
            "who": {"email": [extra["who"]["email"][0], "***"], "card": "***", "plan": OPEN_EXTRA},
            "devices": [{"ip": "203.0.113.0/24"}, [{"ip": "2001:db8:1::/48"}]],
            "place": "Ber", "visits": ["2012-12-31T14:00:00Z", "***"], "file.name": "***",
        })
    );
    assert!(
        world
            .archived("vault")
            .await?
            .iter()
            .all(|row| row["_extra"].is_empty() && row["city"] == OPEN)
    );

    // A record that was masked before comes out the same, and is no other event.
    let event = masked_again(row)?;
    let headers = OwnedHeaders::new()
        .insert(Header {
            key: "highwater-masked",
            value: Some("true"),
        })
        .insert(Header {
            key: "via",
            value: Some("***"),
        });
    sender
        .send_as("people", &row["keyed"], Some(event.to_string().as_bytes()), headers)
        .await?;
    sender
        .send("people", Some(person(EVENTS).to_string().as_bytes()))
        .await?;
    let count = u64::try_from(EVENTS + 1)?;
    world.until_counted(&api, "people", "merged", count).await?;
    world.until_counted(&api, "people", "batch", count).await?;
    let of_event: Vec<_> = world
        .archived("people")
        .await?
        .into_iter()
        .filter(|other| other["id"] == row["id"])
        .map(|row| {
            row.into_iter()
                .filter(|(name, _)| name != "_offset" && name != "_kafka_time")
                .collect()
        })
        .collect::<Vec<BTreeMap<_, _>>>();
    assert_eq!(of_event.len(), 2, "the archive keeps repeats");
    assert_eq!(of_event[0], of_event[1]);

    // Whatever else there is to ask.
    for arguments in [
        &["reconcile"][..],
        &["status"],
        &["check"],
        &["batch", "list"],
        &["dead-letters", "list", "people"],
    ] {
        let (code, said) = world.run(arguments).await?;
        assert_eq!(code, Some(0), "{arguments:?}: {said}");
        world.json(arguments).await?;
    }
    let dimensions = "city,name,login,phone,address,via,keyed,id";
    let people = world
        .ask(format!(
            "{api}/api/v1/views/people/query?{RANGE}&dimensions={dimensions}"
        ))
        .await?;
    assert!(
        String::from_utf8_lossy(&people).contains(OPEN),
        "what is open is answered"
    );
    for path in ["/metrics", "/api/v1/views", "/api/v1/views/people", "/readyz"] {
        world.ask(format!("{api}{path}")).await?;
    }
    for url in addresses["metrics"]
        .as_object()
        .into_iter()
        .flat_map(|all| all.values())
        .filter_map(Value::as_str)
    {
        let url = if url.ends_with("/metrics") {
            url.to_owned()
        } else {
            format!("{url}/metrics")
        };
        world.ask(url).await?;
    }
    let store = search::store(&clickhouse).await?;
    assert!(anywhere(&store, OPEN), "what is open is in the store");
    let mut letters = Written::new();
    for dataset in ["people", "vault"] {
        letters.extend(search::topic(&brokers, &format!("{dataset}.dead-letters")).await?);
        let own = search::topic(&brokers, dataset).await?;
        assert!(
            !leaks(&own).is_empty() && anywhere(&own, SECRET),
            "a search that finds nothing proves nothing"
        );
    }
    assert!(anywhere(&letters, "highwater-reason"));

    // The logs that were asked for are long enough to mean something.
    let said = up.said();
    assert!(said.contains("DEBUG"), "no debug log");
    up.stop().await?;
    let mut on_disk = Written::new();
    let mut topics = Written::new();
    for file in files(world.site.path())? {
        let path = file.display().to_string();
        let written = (path.clone(), std::fs::read(&file)?);
        if is_parquet(&file) {
            on_disk.push((format!("rows of {path}"), parquet(&file).await?.join("\n").into_bytes()));
        }
        if ["/people-0/", "/vault-0/"].iter().any(|topic| path.contains(topic)) {
            topics.push(written);
        } else {
            on_disk.push(written);
        }
    }
    assert!(anywhere(&topics, SECRET), "the users' topics are among the files");
    assert!(
        anywhere(&on_disk, OPEN) && anywhere(&on_disk, OPEN_EXTRA),
        "what is open is archived"
    );
    let everything = [&world.written, &store, &letters, &on_disk];
    let found: Vec<_> = everything.into_iter().flat_map(leaks).collect();
    assert!(found.is_empty(), "{found:#?}");

    a_rotated_key_is_another_definition(world).await
}

/// The same folder with another key: nothing goes on as if nothing had happened.
async fn a_rotated_key_is_another_definition(mut world: World) -> anyhow::Result<()> {
    let fingerprints = |check: &Value| {
        let views = check["views"].as_array().into_iter().flatten();
        views.map(|view| view["fingerprint"].to_string()).collect::<Vec<_>>()
    };
    let before = world.json(&["check"]).await?;
    world.site.set(KEYS[0].0, "zAnotherK3y");
    let after = world.json(&["check"]).await?;
    let (before, after) = (fingerprints(&before), fingerprints(&after));
    assert!(
        before[0] != after[0] && before[1] == after[1],
        "only of the view that hashes with it"
    );
    let up = world.site.up().await?;
    let (_, status) = world.run(&["status"]).await?;
    assert!(
        status.contains("under rules") && status.contains("and the definitions have"),
        "{status}"
    );
    up.stop().await
}
