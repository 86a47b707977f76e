//! Which fingerprint answers a view's name.
//!
//! A changed view is another fingerprint, and has no history until a batch run has computed it. Until then queries go on with
//! what was published last under that name: what was answered yesterday is answered today. Once the new one is published
//! it answers, and one that comes back answers from its own publication at once.

use std::collections::BTreeMap;

/// Who answers for a fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answering<F> {
    /// It does: it is published.
    Itself,
    /// It does, from speed rows alone: nothing was ever published under its name.
    ItselfUnpublished,
    /// This other one, until its first publication.
    Another(F),
}

/// Who answers for `own`. `published` says when each fingerprint was published last; `of_name` are those that the same view of the
/// same dataset has had, as far as their definitions are known.
pub fn answering<F: Copy + Ord>(
    own: F,
    published: &BTreeMap<F, i64>,
    of_name: impl IntoIterator<Item = F>,
) -> Answering<F> {
    if published.contains_key(&own) {
        return Answering::Itself;
    }
    let at = |other: F| published.get(&other).map(|at| (*at, other));
    match of_name.into_iter().filter_map(at).max() {
        Some((_, other)) => Answering::Another(other),
        None => Answering::ItselfUnpublished,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_published_answers_until_the_new_one_is() {
        let none = BTreeMap::new();
        assert_eq!(answering('b', &none, ['a', 'b']), Answering::ItselfUnpublished);
        let first = BTreeMap::from([('a', 10)]);
        assert_eq!(answering('a', &first, ['a']), Answering::Itself);
        assert_eq!(answering('b', &first, ['a', 'b']), Answering::Another('a'));
        assert_eq!(answering('b', &first, []), Answering::ItselfUnpublished, "not known");
        // Changed twice before a run: what was published last goes on, not what was changed last.
        assert_eq!(answering('c', &first, ['a', 'b', 'c']), Answering::Another('a'));
        let both = BTreeMap::from([('a', 10), ('b', 20)]);
        assert_eq!(answering('b', &both, ['a', 'b']), Answering::Itself);
        assert_eq!(answering('c', &both, ['a', 'b', 'c']), Answering::Another('b'));
        assert_eq!(answering('a', &both, ['a', 'b']), Answering::Itself, "changed back");
        // Published at once: one of them, always the same.
        let tie = BTreeMap::from([('a', 10), ('b', 10)]);
        assert_eq!(answering('c', &tie, ['b', 'a']), Answering::Another('b'));
    }

    proptest! {
        /// Whoever answers is published, if any of the name is; and nobody who is published is answered for.
        #[test]
        fn who_answers_is_published(
            own in 0_u8..6,
            published in prop::collection::btree_map(0_u8..6, -9_i64..9, 0..6),
            of_name in prop::collection::vec(0_u8..6, 0..6),
        ) {
            match answering(own, &published, of_name.clone()) {
                Answering::Itself => prop_assert!(published.contains_key(&own)),
                Answering::ItselfUnpublished => {
                    prop_assert!(!published.contains_key(&own));
                    prop_assert!(of_name.iter().all(|other| !published.contains_key(other)));
                }
                Answering::Another(other) => {
                    prop_assert!(!published.contains_key(&own) && of_name.contains(&other));
                    let at = published[&other];
                    prop_assert!(of_name.iter().filter_map(|one| published.get(one)).all(|one| *one <= at));
                }
            }
        }
    }
}
