//! The events that are measured with: 237-byte flights of 8 fields, and two views over them.
//!
//! An event is a function of its number. Its time goes on by 20 µs a number, so that 50,000 of them make a second,
//! however fast they are sent. Every minute of event time has all 1,000 groups of the one view and all 100 of the other.
//! No two events are the same: within 10,000,000 numbers the tail number tells them apart, beyond them the time too.

/// Events a second of event time.
pub(crate) const A_SECOND: u64 = 50_000;
/// Their mean size in bytes.
#[cfg(test)]
const MEAN_BYTES: usize = 237;

/// The view of 1,000 groups a minute.
pub(crate) const ROUTES: &str = "routes";
/// The view of 100 groups a minute.
pub(crate) const DESTINATIONS: &str = "destinations";
/// The measure of both that counts events.
pub(crate) const COUNT: &str = "flights";

const CARRIERS: [&str; 10] = ["AA", "UA", "DL", "WN", "B6", "AS", "NK", "F9", "HA", "G4"];
const AIRPORTS: [&str; 25] = [
    "ATL", "DFW", "DEN", "ORD", "LAX", "JFK", "LAS", "MCO", "MIA", "CLT", "SEA", "PHX", "EWR", "SFO", "IAH", "BOS",
    "FLL", "MSP", "LGA", "DTW", "PHL", "SLC", "DCA", "SAN", "BWI",
];
const PLACES: [&str; 4] = [
    "Hartsfield-Jackson Atlanta Intl",
    "Dallas Fort Worth International",
    "Denver International",
    "Chicago O'Hare International",
];

/// The dataset and its two views, as TOML.
pub(crate) fn definitions(topic: &str, partitions: u32) -> String {
    format!(
        r#"[dataset.flights]
topic = "{topic}"
partitions = {partitions}
event_time = "scheduled_departure"
event_id = ["flight", "tail_number"]
dedupe = {{ window = "30s" }}

[dataset.flights.fields]
carrier = "string"
flight = "int64"
scheduled_departure = "timestamp"
origin = "string"
destination = "string"
departure_delay = "float64?"
distance = "float64"
tail_number = "string"

[view.{ROUTES}]
dataset = "flights"
grain = "1m"
dimensions = ["carrier", "origin"]

[view.{ROUTES}.measures]
{COUNT} = "count()"
delay = "avg(departure_delay)"

[view.{DESTINATIONS}]
dataset = "flights"
grain = "1m"
dimensions = ["destination"]

[view.{DESTINATIONS}.measures]
{COUNT} = "count()"
longest = "max(distance)"
"#
    )
}

/// A measure beside the usual ones: of which view, and its line.
pub(crate) type Further = (&'static str, &'static str);

const DISTINCT: &str = r#"tails = "distinct(tail_number)""#;
const QUANTILES: &str = r#"delays = "quantiles(departure_delay, [0.5, 0.99])""#;
/// One in each view.
pub(crate) const APART: [Further; 2] = [(ROUTES, DISTINCT), (DESTINATIONS, QUANTILES)];
/// Both in the view of more groups.
pub(crate) const TOGETHER: [Further; 2] = [(ROUTES, DISTINCT), (ROUTES, QUANTILES)];

/// The same as [`definitions`], with further measures.
pub(crate) fn definitions_with(topic: &str, partitions: u32, further: &[Further]) -> String {
    let usual = definitions(topic, partitions);
    further.iter().fold(usual, |text, (view, measure)| {
        let head = format!("[view.{view}.measures]\n");
        text.replace(&head, &format!("{head}{measure}\n"))
    })
}

/// Writes events, one at a time.
#[derive(Debug)]
pub(crate) struct Events {
    /// Event time of number 0, in seconds since 1970.
    first: i64,
    /// `YYYY-MM-DDTHH:MM:SS` of this second, as most events follow on one of the same.
    second: Option<u64>,
    time: String,
    text: Vec<u8>,
}

impl Events {
    /// Number 0 has this time, in seconds since 1970.
    pub(crate) fn since(first: i64) -> Self {
        Self {
            first,
            second: None,
            time: String::new(),
            text: Vec::with_capacity(320),
        }
    }

    /// The event of that number, as it is sent.
    pub(crate) fn event(&mut self, number: u64) -> &[u8] {
        let mut random = scrambled(number);
        let mut below = |bound: u64| {
            let chosen = random % bound;
            random /= bound;
            chosen
        };
        let (carrier, origin, destination) = (below(10), below(100), below(100));
        let (delay, distance, flight) = (below(20 * 1900), below(250_000), below(9000) + 1);
        let second = number / A_SECOND;
        if self.second != Some(second) {
            self.second = Some(second);
            let at = self.first.saturating_add_unsigned(second);
            let at = chrono::DateTime::from_timestamp(at, 0).unwrap_or_default();
            self.time = at.format("%Y-%m-%dT%H:%M:%S").to_string();
        }

        let text = &mut self.text;
        text.clear();
        text.extend_from_slice(br#"{"carrier":""#);
        text.extend_from_slice(pick(&CARRIERS, carrier).as_bytes());
        text.extend_from_slice(br#"","flight":"#);
        push_digits(text, flight, 1);
        text.extend_from_slice(br#","scheduled_departure":""#);
        text.extend_from_slice(self.time.as_bytes());
        text.push(b'.');
        push_digits(text, number % A_SECOND / (A_SECOND / 1000), 3);
        text.extend_from_slice(br#"Z","origin":""#);
        push_airport(text, origin);
        text.extend_from_slice(br#"","destination":""#);
        push_airport(text, destination);
        text.extend_from_slice(br#"","departure_delay":"#);
        // One in twenty is not known.
        if delay < 1900 {
            text.extend_from_slice(b"null");
        } else {
            push_digits(text, delay % 1900 / 10, 1);
            text.push(b'.');
            push_digits(text, delay % 10, 1);
        }
        text.extend_from_slice(br#","distance":"#);
        push_digits(text, distance / 100 + 100, 1);
        text.push(b'.');
        push_digits(text, distance % 100, 2);
        text.extend_from_slice(br#","tail_number":"N"#);
        push_digits(text, number % 10_000_000, 7);
        text.extend_from_slice(br#""}"#);
        text
    }
}

/// A number's bits, well mixed (the finisher of SplitMix64).
fn scrambled(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

fn pick<const N: usize>(all: &[&'static str; N], at: u64) -> &'static str {
    all[usize::try_from(at).unwrap_or_default() % N]
}

fn push_airport(text: &mut Vec<u8>, number: u64) {
    text.extend_from_slice(pick(&AIRPORTS, number / 4).as_bytes());
    text.push(b' ');
    text.extend_from_slice(pick(&PLACES, number % 4).as_bytes());
}

/// Decimal digits, with zeros in front up to the width.
fn push_digits(text: &mut Vec<u8>, mut number: u64, width: usize) {
    let mut digits = [b'0'; 20];
    let mut at = digits.len();
    while number > 0 {
        at -= 1;
        // Below ten, so it fits.
        digits[at] += u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
    }
    text.extend_from_slice(&digits[at.min(digits.len() - width)..]);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;
    use shared_schemas::definitions::Definitions;

    use super::*;

    #[test]
    fn the_definitions_are_sound() {
        let definitions = Definitions::parse([("flights.toml", definitions("flights", 8))]).unwrap();
        assert_eq!(definitions.datasets[0].fields.len(), 8);
        assert!(definitions.view(ROUTES).is_some() && definitions.view(DESTINATIONS).is_some());
    }

    #[test]
    fn events_are_of_that_size_and_all_differ() {
        let (mut events, mut bytes) = (Events::since(1_704_067_200), 0);
        let (mut routes, mut destinations, mut ids) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for number in 0..50_000 {
            let text = events.event(number);
            bytes += text.len();
            let event: Value = serde_json::from_slice(text).unwrap();
            let texts = ["carrier", "origin", "destination", "tail_number"].map(|name| event[name].to_string());
            let [carrier, origin, destination, tail] = texts;
            routes.insert((carrier, origin));
            destinations.insert(destination);
            ids.insert((event["flight"].as_u64().unwrap(), tail));
        }
        assert_eq!(bytes / 50_000, MEAN_BYTES);
        assert_eq!((routes.len(), destinations.len(), ids.len()), (1000, 100, 50_000));
    }

    #[test]
    fn time_goes_on_with_the_number() {
        let mut events = Events::since(1_704_067_200);
        let mut time = |number| {
            let event: Value = serde_json::from_slice(events.event(number)).unwrap();
            event["scheduled_departure"].as_str().unwrap().to_owned()
        };
        assert_eq!(time(0), "2024-01-01T00:00:00.000Z");
        assert_eq!(time(99), "2024-01-01T00:00:00.001Z");
        assert_eq!(time(60 * A_SECOND - 1), "2024-01-01T00:00:59.999Z");
        assert_eq!(time(60 * A_SECOND), "2024-01-01T00:01:00.000Z");
    }
}
