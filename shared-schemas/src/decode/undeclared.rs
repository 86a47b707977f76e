//! Mask rules on paths of undeclared data: what they make of `_extra`.
//!
//! Nobody said what stands at such a path, so whatever does is hidden: a rule that fits its kind changes it, any other
//! makes it `***`. Arrays are looked into, on the way and at the path's end. Names are compared unescaped, and every
//! occurrence of one is masked: a name that comes twice must not leave its first value behind.
//!
//! The text is known to be JSON. Were it not, the value would be hidden as a whole: a fault here must not show anything.

use chrono::{DateTime, SecondsFormat};

use crate::dataset::PathMask;

use super::mask::{KeyFault, MaskKeys, Masking, REDACTED};
use super::scan::{self, Fault, Kind, Scanner, Token};
use super::{LARGEST_TEXT, extra, time};

/// Masking makes at most so many times of a value what it is long,
const LONGER: usize = 4;
/// and so many bytes more: a hash is 66 bytes, whatever it hides.
const ROOM: usize = 4096;

/// The rules as a tree of names.
pub(super) struct Rules {
    /// The first is the record.
    nodes: Vec<Node>,
}

/// Where rules lead through, or one ends.
#[derive(Default)]
struct Node {
    members: Vec<(String, usize)>,
    masking: Option<Masking>,
}

/// A place in the tree.
#[derive(Clone, Copy)]
pub(super) struct At<'r> {
    rules: &'r Rules,
    node: usize,
}

impl Rules {
    /// The rules ready for use, or the path whose key can't be used.
    pub(super) fn new<'p>(paths: &'p [PathMask], keys: &dyn MaskKeys) -> Result<Self, (&'p PathMask, KeyFault)> {
        let mut nodes = vec![Node::default()];
        for rule in paths {
            let mut node = 0;
            for name in &rule.path {
                node = match member(&nodes[node], name) {
                    Some(child) => child,
                    None => {
                        let child = nodes.len();
                        nodes.push(Node::default());
                        nodes[node].members.push((name.clone(), child));
                        child
                    }
                };
            }
            nodes[node].masking = Some(Masking::new(&rule.mask, keys).map_err(|fault| (rule, fault))?);
        }
        Ok(Self { nodes })
    }

    /// The record, if there are rules at all.
    pub(super) fn root(&self) -> Option<At<'_>> {
        (self.nodes.len() > 1).then_some(At { rules: self, node: 0 })
    }
}

fn member(node: &Node, name: &str) -> Option<usize> {
    node.members
        .iter()
        .find(|(known, _)| known == name)
        .map(|(_, child)| *child)
}

impl<'r> At<'r> {
    /// Where rules lead on to, or end, in the member of that name.
    pub(super) fn member(self, name: Token, text: &str) -> Option<Self> {
        let node = member(&self.rules.nodes[self.node], &extra::name(name, text))?;
        Some(Self { node, ..self })
    }

    /// The rule that ends here.
    pub(super) fn masking(self) -> Option<&'r Masking> {
        self.rules.nodes[self.node].masking.as_ref()
    }

    /// Appends what the rules make of a value. False, and nothing appended, where it is dropped. A value of which they would
    /// make far more than it was is hidden as a whole: a record of many small ones must not become a large one.
    pub(super) fn write(self, value: Token, text: &str, masked: bool, out: &mut String) -> bool {
        if matches!(self.masking(), Some(Masking::Drop)) {
            return false;
        }
        let before = out.len();
        let most = before + (LONGER * value.raw(text).len() + ROOM).min(LARGEST_TEXT);
        let mut writer = Writer {
            text,
            scanner: Scanner::at_byte(text, value.start),
            masked,
            scratch: String::new(),
            masked_text: String::new(),
            most,
            out,
        };
        if writer.value(self).is_err() || out.len() > most {
            out.truncate(before);
            quote(REDACTED, out);
        }
        true
    }
}

struct Writer<'a, 'o> {
    text: &'a str,
    scanner: Scanner<'a>,
    /// Whether the record says that it was masked before.
    masked: bool,
    scratch: String,
    masked_text: String,
    /// Longer than this, it is given up.
    most: usize,
    out: &'o mut String,
}

impl Writer<'_, '_> {
    /// The next value. It recurses as deep as objects and arrays nest, which the grammar limits.
    fn value(&mut self, at: At<'_>) -> Result<(), Fault> {
        if self.out.len() > self.most {
            return self.scanner.fault("too long when masked");
        }
        match (self.scanner.peek(), at.masking()) {
            (Some(b'['), _) => self.array(at),
            (Some(b'{'), None) => self.object(at),
            (_, masking) => {
                let value = self.scanner.value(0)?;
                match masking {
                    Some(masking) => self.mask(masking, value),
                    None => self.out.push_str(value.raw(self.text)),
                }
                Ok(())
            }
        }
    }

    fn array(&mut self, at: At<'_>) -> Result<(), Fault> {
        self.scanner.take(b'[');
        self.out.push('[');
        self.scanner.space();
        if !self.scanner.take(b']') {
            loop {
                self.value(at)?;
                self.scanner.space();
                if self.scanner.take(b']') {
                    break;
                }
                if !self.scanner.take(b',') {
                    return self.scanner.fault("expected a comma or ]");
                }
                self.out.push(',');
                self.scanner.space();
            }
        }
        self.out.push(']');
        Ok(())
    }

    fn object(&mut self, at: At<'_>) -> Result<(), Fault> {
        self.scanner.take(b'{');
        self.out.push('{');
        let begin = self.out.len();
        self.scanner.space();
        if !self.scanner.take(b'}') {
            loop {
                let before = self.out.len();
                if before > begin {
                    self.out.push(',');
                }
                let name = self.scanner.name()?;
                self.out.push_str(name.raw(self.text));
                self.out.push(':');
                match at.member(name, self.text) {
                    Some(inside) if matches!(inside.masking(), Some(Masking::Drop)) => {
                        self.scanner.value(0)?;
                        self.out.truncate(before);
                    }
                    Some(inside) => self.value(inside)?,
                    None => {
                        let value = self.scanner.value(0)?;
                        self.out.push_str(value.raw(self.text));
                    }
                }
                self.scanner.space();
                if self.scanner.take(b'}') {
                    break;
                }
                if !self.scanner.take(b',') {
                    return self.scanner.fault("expected a comma or }");
                }
                self.scanner.space();
            }
        }
        self.out.push('}');
        Ok(())
    }

    /// What a rule makes of a value that is no array.
    fn mask(&mut self, masking: &Masking, value: Token) {
        let plain = match value.kind {
            // Null hides nothing.
            Kind::Null => return self.out.push_str("null"),
            Kind::Plain => Some(value.inner(self.text)),
            Kind::Escaped => {
                self.scratch.clear();
                scan::unescape(value.inner(self.text), &mut self.scratch);
                Some(self.scratch.as_str())
            }
            Kind::Number | Kind::True | Kind::False if matches!(masking, Masking::Hash(_)) => {
                Some(value.raw(self.text))
            }
            _ => None,
        };
        match (masking, plain) {
            (Masking::Floor(_), Some(text)) => {
                let floor = time::rfc3339(text).and_then(|micros| masking.moment(micros));
                match floor.and_then(DateTime::from_timestamp_micros) {
                    Some(moment) => quote(&moment.to_rfc3339_opts(SecondsFormat::Secs, true), self.out),
                    None => quote(REDACTED, self.out),
                }
            }
            (_, None) => hide(masking, self.out),
            // What an object was made into before.
            (Masking::Hash(_), Some(REDACTED)) if self.masked => quote(REDACTED, self.out),
            (_, Some(text)) => match masking.text(text, self.masked, &mut self.masked_text) {
                Some(text) => quote(text, self.out),
                None => self.out.push_str("null"),
            },
        }
    }
}

/// Appends what stands for a value that a rule does not fit: again the same if the rule is applied again.
pub(super) fn hide(masking: &Masking, out: &mut String) {
    let characters = match masking {
        Masking::Characters(count) => (*count).min(REDACTED.len()),
        _ => REDACTED.len(),
    };
    quote(&REDACTED[..characters], out);
}

/// Appends a text as a JSON string.
fn quote(text: &str, out: &mut String) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            '\0'..='\u{1f}' => {
                let code = u32::from(letter);
                let digit = |shift: u32| char::from_digit(code >> shift & 15, 16).unwrap_or('0');
                out.extend(['\\', 'u', '0', '0', digit(4), digit(0)]);
            }
            other => out.push(other),
        }
    }
    out.push('"');
}
