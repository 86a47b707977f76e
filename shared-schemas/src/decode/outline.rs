//! Walks one JSON object once and notes where the declared paths stand, by a tree of their names.
//!
//! Only places are noted here, nothing is converted: what is wrong with a field may be said only once the whole text is
//! known to be JSON, else the reason would depend on which of two faults comes first. A name that comes again clears
//! all that was noted below its first occurrence: the last counts, in nested objects too, and in what is left over.

use super::refusal::{Reason, Refusal};
use super::scan::{self, Fault, Kind, Scanner, Token};

/// Where a declared path stands in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere, or below a null.
    Absent,
    /// A value on the way to it is neither object nor null; that value begins here.
    Blocked(usize),
    /// Here.
    At(Token),
}

/// The declared paths as a tree of names.
pub(super) struct Outline {
    /// The first is the outermost object.
    nodes: Vec<Node>,
    paths: Vec<Vec<String>>,
}

/// An object on the way to declared paths.
#[derive(Default)]
struct Node {
    members: Vec<Member>,
    /// Members by length and name.
    sorted: Vec<usize>,
    /// All places below.
    places: Vec<usize>,
    /// All nodes below, itself included.
    below: Vec<usize>,
}

struct Member {
    name: String,
    /// The name and a colon as they nearly always stand in a record; `None` where the name needs an escape.
    written: Option<Vec<u8>>,
    place: Option<usize>,
    node: Option<usize>,
}

/// A member of an object that goes to `_extra`.
pub(super) struct Rest {
    pub(super) name: Token,
    pub(super) value: RestValue,
}

pub(super) enum RestValue {
    /// Undeclared: as it is.
    Whole(Token),
    /// On the way to declared paths: what that node leaves over.
    Node(usize),
    /// It came again later.
    Overtaken,
}

/// What a walk finds; kept between records for its memory.
#[derive(Default)]
pub(super) struct Found {
    pub(super) places: Vec<Place>,
    /// Per node, what it leaves over.
    pub(super) rest: Vec<Vec<Rest>>,
    /// Per node, its index in its parent's `rest`.
    rest_of: Vec<Option<usize>>,
    name: String,
}

impl Outline {
    pub(super) fn new() -> Self {
        Outline {
            nodes: vec![Node {
                below: vec![0],
                ..Node::default()
            }],
            paths: Vec::new(),
        }
    }

    /// The place of a path, added if it is new.
    pub(super) fn place(&mut self, path: &[String]) -> usize {
        if let Some(place) = self.paths.iter().position(|known| known == path) {
            return place;
        }
        let place = self.paths.len();
        self.paths.push(path.to_vec());
        let mut way = Vec::new();
        let mut node = 0;
        for (index, name) in path.iter().enumerate() {
            way.push(node);
            self.nodes[node].places.push(place);
            let member = self.member(node, name);
            if index + 1 == path.len() {
                self.nodes[node].members[member].place = Some(place);
                break;
            }
            node = match self.nodes[node].members[member].node {
                Some(child) => child,
                None => {
                    let child = self.nodes.len();
                    self.nodes.push(Node {
                        below: vec![child],
                        ..Node::default()
                    });
                    self.nodes[node].members[member].node = Some(child);
                    for &above in &way {
                        self.nodes[above].below.push(child);
                    }
                    child
                }
            };
        }
        place
    }

    fn member(&mut self, node: usize, name: &str) -> usize {
        let Node { members, sorted, .. } = &mut self.nodes[node];
        if let Some(member) = members.iter().position(|member| member.name == name) {
            return member;
        }
        let is_plain = |byte: u8| !matches!(byte, b'"' | b'\\' | 0..0x20);
        members.push(Member {
            name: name.to_owned(),
            written: name.bytes().all(is_plain).then(|| format!("\"{name}\":").into_bytes()),
            place: None,
            node: None,
        });
        sorted.push(members.len() - 1);
        sorted.sort_by_key(|&member| key(&members[member].name));
        members.len() - 1
    }

    /// Walks a record's value; `keep` says whether to note what is left over too.
    pub(super) fn walk(&self, text: &str, found: &mut Found, keep: bool) -> Result<(), Refusal> {
        found.places.resize(self.paths.len(), Place::Absent);
        found.rest.resize_with(self.nodes.len(), Vec::new);
        found.rest_of.resize(self.nodes.len(), None);
        let mut walk = Walk {
            outline: self,
            text,
            scanner: Scanner::new(text),
            found,
            keep,
        };
        walk.record()
    }
}

fn key(name: &str) -> (usize, &str) {
    (name.len(), name)
}

struct Walk<'a, 'f> {
    outline: &'a Outline,
    text: &'a str,
    scanner: Scanner<'a>,
    found: &'f mut Found,
    keep: bool,
}

impl Walk<'_, '_> {
    fn record(&mut self) -> Result<(), Refusal> {
        self.scanner.space();
        if self.scanner.peek() == Some(b'{') {
            return self.object(0, 0).and_then(|()| self.scanner.end()).map_err(not_json);
        }
        let value = self.scanner.value(0).map_err(not_json)?;
        self.scanner.end().map_err(not_json)?;
        match value.kind {
            Kind::Null => Err(Refusal::new(Reason::Empty, "the value is null")),
            kind => Err(Refusal::new(
                Reason::NotObject,
                format!("the value is {}, not an object", kind.noun()),
            )),
        }
    }

    /// An object that holds declared names; the next byte is its brace.
    fn object(&mut self, node: usize, depth: u32) -> Result<(), Fault> {
        self.scanner.open(depth)?;
        self.scanner.take(b'{');
        self.clear(node, Place::Absent);
        self.scanner.space();
        if self.scanner.take(b'}') {
            return Ok(());
        }
        let mut next = 0;
        loop {
            let (name, member) = match self.expected(node, next) {
                Some(name) => {
                    next += 1;
                    (name, Some(next - 1))
                }
                None => {
                    let name = self.scanner.name()?;
                    (name, self.lookup(node, name, &mut next))
                }
            };
            match member {
                Some(member) => self.member(node, member, name, depth)?,
                None => {
                    let value = RestValue::Whole(self.scanner.value(depth + 1)?);
                    if self.keep {
                        self.found.rest[node].push(Rest { name, value });
                    }
                }
            }
            self.scanner.space();
            if self.scanner.take(b'}') {
                return Ok(());
            }
            if !self.scanner.take(b',') {
                return self.scanner.fault("expected a comma or }");
            }
            self.scanner.space();
        }
    }

    fn member(&mut self, node: usize, member: usize, name: Token, depth: u32) -> Result<(), Fault> {
        let outline = self.outline;
        let &Member { place, node: child, .. } = &outline.nodes[node].members[member];
        let start = self.scanner.at();
        let value = match child {
            None => self.scanner.value(depth + 1)?,
            Some(child) => {
                let open = self.scanner.peek() == Some(b'{');
                let value = if open {
                    self.object(child, depth + 1)?;
                    Token {
                        kind: Kind::Object,
                        start,
                        end: self.scanner.at(),
                    }
                } else {
                    let value = self.scanner.value(depth + 1)?;
                    self.clear(
                        child,
                        if value.kind == Kind::Null {
                            Place::Absent
                        } else {
                            Place::Blocked(start)
                        },
                    );
                    value
                };
                if self.keep {
                    let rest = &mut self.found.rest[node];
                    if let Some(before) = self.found.rest_of[child].take() {
                        rest[before].value = RestValue::Overtaken;
                    }
                    if open {
                        self.found.rest_of[child] = Some(rest.len());
                        rest.push(Rest {
                            name,
                            value: RestValue::Node(child),
                        });
                    }
                }
                value
            }
        };
        if let Some(place) = place {
            self.found.places[place] = Place::At(value);
        }
        Ok(())
    }

    /// Forgets what an earlier object of this name held.
    fn clear(&mut self, node: usize, place: Place) {
        let node = &self.outline.nodes[node];
        for &below in &node.places {
            self.found.places[below] = place;
        }
        if self.keep {
            for &below in &node.below {
                self.found.rest[below].clear();
            }
            for &below in &node.below[1..] {
                self.found.rest_of[below] = None;
            }
        }
    }

    /// The name of that declared member, where it and its colon are next. Found by comparing, they need not be scanned.
    #[inline]
    fn expected(&mut self, node: usize, member: usize) -> Option<Token> {
        let written = self.outline.nodes[node].members.get(member)?.written.as_deref()?;
        let start = self.scanner.at();
        if !self.scanner.take_all(written) {
            return None;
        }
        let end = self.scanner.at() - 1;
        self.scanner.space();
        Some(Token {
            kind: Kind::Plain,
            start,
            end,
        })
    }

    /// The declared member of that name. Most messages hold their fields in the order of the definition, so the one after
    /// the last is tried first.
    #[inline]
    fn lookup(&mut self, node: usize, name: Token, next: &mut usize) -> Option<usize> {
        let Node { members, sorted, .. } = &self.outline.nodes[node];
        let inner = name.inner(self.text);
        let name = if name.kind == Kind::Plain {
            inner
        } else {
            self.found.name.clear();
            scan::unescape(inner, &mut self.found.name);
            &self.found.name
        };
        if members.get(*next).is_none_or(|member| member.name != name) {
            let at = sorted
                .binary_search_by_key(&key(name), |&member| key(&members[member].name))
                .ok()?;
            *next = sorted[at];
        }
        *next += 1;
        Some(*next - 1)
    }
}

fn not_json(fault: Fault) -> Refusal {
    Refusal::new(
        Reason::NotJson,
        format!("the value is not JSON: {} at byte {}", fault.what, fault.at),
    )
}
