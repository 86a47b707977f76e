//! What is sent: datasets with every rule there is, and secrets in every place that a record has.

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};

use highwater_tests::stack::PATIENCE;

/// In every text that must not be stored.
pub(super) const SECRET: &str = "zQ7pLant";
/// A value of a field without a rule: found wherever events are stored, by the same search.
pub(super) const OPEN: &str = "zOpenCity";
/// Undeclared data without a rule.
pub(super) const OPEN_EXTRA: &str = "zOpenExtra";
/// Everything that must not be found: texts, addresses, digits, and moments in each form that they are written in.
pub(super) const SECRETS: [&str; 6] = [
    SECRET,
    "203.0.113.77",
    "7a7a:1:2:3",
    "645546372819",
    "37:41.918",
    "1356964661918",
];
/// The keys, which nothing may show either.
pub(super) const KEYS: [(&str, &str); 2] = [
    ("HIGHWATER_TEST_PEOPLE_KEY", "zK3yOfPeople"),
    ("HIGHWATER_TEST_LOGIN_KEY", "zK3yOfLogins"),
];

pub(super) const CONFIG: &str = "[kafka]\nbrokers = \"127.0.0.1:0\"\n\n[clickhouse]\nurl = \"http://127.0.0.1:0\"\n\n\
    [archive]\ncommit_every = \"200ms\"\n\n[batch]\ncut_wait = \"20s\"\n\n[serve]\nlisten = \"127.0.0.1:0\"\n";

pub(super) const DEFINITIONS: &str = r#"
[dataset.people]
partitions = 1
event_time = "at"
event_id = ["id"]
chunk = 16
max_event_size = "4KiB"

[dataset.people.fields]
at = "timestamp"
id = "string"
name = "string?"
note = "string?"
phone = "string?"
address = "string?"
seen = "timestamp?"
born = { type = "timestamp?", unit = "ms" }
login = { type = "string?", from = "who.login" }
keyed = { type = "string?", from = "$key" }
via = { type = "string?", from = "$header.via" }
weight = "int64?"
count = "int64?"
price = "decimal(5,2)?"
city = "string?"

[dataset.people.mask]
id = { hash = "HIGHWATER_TEST_PEOPLE_KEY" }
name = "redact"
note = "drop"
phone = { truncate = 4 }
address = { truncate = "ip" }
seen = { truncate = "day" }
born = { truncate = "hour" }
login = { hash = "HIGHWATER_TEST_LOGIN_KEY" }
keyed = { hash = "HIGHWATER_TEST_PEOPLE_KEY" }
via = "redact"
weight = "drop"
"who.email" = { hash = "HIGHWATER_TEST_PEOPLE_KEY" }
"who.card" = "redact"
"_extra.token" = "drop"
"devices.ip" = { truncate = "ip" }
"_extra.place" = { truncate = 3 }
"_extra.visits" = { truncate = "hour" }
'file\.name' = "redact"

[view.people]
dataset = "people"
grain = "1h"
dimensions = ["city", "name", "login", "phone", "address", "via", "keyed", "id"]

[view.people.measures]
people = "count()"
seen = "max(seen)"
born = "min(born)"

[dataset.vault]
partitions = 1
event_time = "at"
event_id = ["id"]
chunk = 16
max_event_size = "4KiB"
extra = "drop"

[dataset.vault.fields]
at = "timestamp"
id = "string"
city = "string?"
name = { type = "int64?", from = "name.length" }
count = "int64?"
price = "decimal(5,2)?"

[view.vault]
dataset = "vault"
grain = "1h"
dimensions = ["city"]

[view.vault.measures]
people = "count()"
"#;

/// A person: each field, each path, and each kind of value with a secret in it.
pub(super) fn person(number: usize) -> Value {
    let secret = |place: &str| format!("{SECRET}-{place}-{number}");
    json!({
        "at": "2013-01-01T00:30:00Z", "id": secret("id"), "name": secret("name"), "note": secret("note"),
        "phone": format!("0170{}", secret("phone")), "address": "203.0.113.77", "seen": "2012-12-31T14:37:41.918273Z",
        "born": 1_356_964_661_918_i64, "weight": 918_273_645_546_372_819_i64, "count": 1, "price": 1.25, "city": OPEN,
        "who": {"login": secret("login"), "email": [secret("email"), {"is": secret("email")}],
                "card": 918_273_645_546_372_819_i64, "plan": OPEN_EXTRA},
        "token": {"a": [secret("token")]}, "devices": [{"ip": "203.0.113.77"}, [{"ip": "2001:db8:1:7:7a7a:1:2:3"}]],
        "place": format!("Ber{}", secret("place")), "visits": ["2012-12-31T14:37:41.918273Z", secret("visit")],
        "file.name": {(secret("name")): secret("name")},
    })
}

/// An event of the dataset that keeps nothing undeclared.
pub(super) fn vaulted(number: usize) -> Value {
    let secret = |place: &str| format!("{SECRET}-{place}-{number}");
    json!({
        "at": "2013-01-01T00:30:00Z", "id": format!("v{number}"), "city": OPEN, "name": {"length": 3, "text": secret("name")},
        "email": secret("email"), "deep": [{"er": [secret("deep")]}], (secret("key")): 203, "card": 918_273_645_546_372_819_i64,
    })
}

/// A record for each reason to refuse one, with secrets in it.
pub(super) fn refused() -> Vec<(Option<Vec<u8>>, &'static str)> {
    let text = |text: String| Some(text.into_bytes());
    let event = |rest: &str| {
        text(format!(
            "{{\"at\":\"2013-01-01T00:30:00Z\",\"id\":\"{SECRET}\",{rest}}}"
        ))
    };
    let whole = person(0).to_string();
    let tomorrow = chrono::Utc::now() + chrono::TimeDelta::days(1);
    vec![
        (text(whole[..whole.len() - 20].to_owned()), "not_json"),
        (text(format!("{whole} {SECRET}")), "not_json"),
        (text(format!("{{\"{SECRET}\\ud800\": 1}}")), "not_json"),
        (text(format!("\"{SECRET}\"")), "not_object"),
        (text(format!("[\"{SECRET}\"]")), "not_object"),
        (None, "empty"),
        (
            Some([format!("{{\"name\":\"{SECRET}").as_bytes(), b"\xff\"}"].concat()),
            "bad_utf8",
        ),
        (
            text(format!("{{\"name\":\"{SECRET}{}\"}}", "x".repeat(5_000))),
            "too_large",
        ),
        (
            text(format!("{{\"id\":\"{SECRET}\",\"other\":\"{SECRET}\"}}")),
            "missing_field",
        ),
        (event(&format!("\"count\":\"{SECRET}\"")), "wrong_type"),
        (event(&format!("\"name\":[\"{SECRET}\"]")), "wrong_type"),
        (event("\"count\":918273645546372819918273645546372819"), "out_of_range"),
        (event("\"price\":1.918273645546372819"), "inexact"),
        (text(format!("{{\"at\":\"{SECRET}\",\"id\":\"{SECRET}\"}}")), "bad_time"),
        (
            text(format!("{{\"at\":\"{}\",\"id\":\"{SECRET}\"}}", tomorrow.to_rfc3339())),
            "future_time",
        ),
    ]
}

/// Sends records with secrets in key and headers too.
pub(super) struct Sender {
    producer: FutureProducer,
}

impl Sender {
    pub(super) fn new(brokers: &str) -> anyhow::Result<Self> {
        let producer = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
        Ok(Self { producer })
    }

    pub(super) async fn send(&self, topic: &str, value: Option<&[u8]>) -> anyhow::Result<()> {
        let headers = OwnedHeaders::new()
            .insert(Header {
                key: "via",
                value: Some(&format!("{SECRET}-via")),
            })
            .insert(Header {
                key: SECRET,
                value: Some(SECRET),
            });
        self.send_as(topic, &format!("{SECRET}-key"), value, headers).await
    }

    pub(super) async fn send_as(
        &self,
        topic: &str,
        key: &str,
        value: Option<&[u8]>,
        headers: OwnedHeaders,
    ) -> anyhow::Result<()> {
        let mut record = FutureRecord::<str, [u8]>::to(topic)
            .partition(0)
            .key(key)
            .headers(headers);
        record.payload = value;
        self.producer.send(record, PATIENCE).await.map_err(|(error, _)| error)?;
        Ok(())
    }
}
