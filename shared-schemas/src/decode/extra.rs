//! What a record holds beyond its declared fields, as one JSON object: names and values byte for byte as they came.
//!
//! A declared path is never in it, not by way of a repeated name nor inside a parent, so what a mask hides stays hidden.
//! On the way to paths that have mask rules of their own the text is written anew, without white space.

use std::borrow::Cow;
use std::collections::HashSet;

use super::mask::Masking;
use super::outline::{Found, RestValue};
use super::scan::{self, Kind, Token};
use super::undeclared::{At, hide};

/// Up to so many members, names are compared with each other; beyond, they are hashed, or a hostile message of a
/// hundred thousand names would cost ten thousand million comparisons.
const FEW: usize = 16;

/// Appends the object to `out`; false, and nothing appended, if nothing is left over. `rules`: where mask rules begin;
/// `masked`: the record says that it was masked before.
pub(super) fn write(found: &Found, text: &str, rules: Option<At<'_>>, masked: bool, out: &mut String) -> bool {
    Leftovers { found, text, masked }.node(0, rules, out)
}

struct Leftovers<'a> {
    found: &'a Found,
    text: &'a str,
    masked: bool,
}

impl Leftovers<'_> {
    fn node(&self, node: usize, rules: Option<At<'_>>, out: &mut String) -> bool {
        let &Self { found, text, masked } = self;
        let rest = &found.rest[node];
        if rest.is_empty() {
            return false;
        }
        let whole = |index: usize| matches!(rest[index].value, RestValue::Whole(_));
        let repeated: HashSet<usize> = if rest.len() > FEW {
            repeated(found, text, node)
        } else {
            HashSet::new()
        };
        let begin = out.len();
        out.push('{');
        for (index, member) in rest.iter().enumerate() {
            let before = out.len();
            if before > begin + 1 {
                out.push(',');
            }
            out.push_str(member.name.raw(text));
            out.push(':');
            let inside = rules.and_then(|at| at.member(member.name, text));
            let written = match member.value {
                RestValue::Overtaken => false,
                RestValue::Node(child) => self.parent(child, inside, out),
                RestValue::Whole(value) => {
                    let again = if rest.len() > FEW {
                        repeated.contains(&index)
                    } else {
                        (index + 1..rest.len()).any(|later| whole(later) && same(member.name, rest[later].name, text))
                    };
                    match inside {
                        _ if again => false,
                        Some(at) => at.write(value, text, masked, out),
                        None => {
                            out.push_str(value.raw(text));
                            true
                        }
                    }
                }
            };
            if !written {
                out.truncate(before);
            }
        }
        if out.len() == begin + 1 {
            out.truncate(begin);
            return false;
        }
        out.push('}');
        true
    }

    /// What a parent of declared fields holds beside them. A rule for the parent hides that, not the fields.
    fn parent(&self, node: usize, rules: Option<At<'_>>, out: &mut String) -> bool {
        let Some(masking) = rules.and_then(At::masking) else {
            return self.node(node, rules, out);
        };
        let before = out.len();
        let written = self.node(node, None, out);
        out.truncate(before);
        if !written || matches!(masking, Masking::Drop) {
            return false;
        }
        hide(masking, out);
        true
    }
}

/// The members whose name comes again later.
fn repeated(found: &Found, text: &str, node: usize) -> HashSet<usize> {
    let mut names = HashSet::new();
    let members = found.rest[node].iter().enumerate().rev();
    let whole = members.filter(|(_, member)| matches!(member.value, RestValue::Whole(_)));
    whole
        .filter(|(_, member)| !names.insert(name(member.name, text)))
        .map(|(index, _)| index)
        .collect()
}

fn same(left: Token, right: Token, text: &str) -> bool {
    if left.kind == Kind::Plain && right.kind == Kind::Plain {
        return left.inner(text) == right.inner(text);
    }
    name(left, text) == name(right, text)
}

pub(super) fn name(token: Token, text: &str) -> Cow<'_, str> {
    let inner = token.inner(text);
    if token.kind == Kind::Plain {
        return Cow::Borrowed(inner);
    }
    let mut name = String::with_capacity(inner.len());
    scan::unescape(inner, &mut name);
    Cow::Owned(name)
}
