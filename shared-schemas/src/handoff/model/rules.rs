//! The rules of the design. Each can be broken, and the model then fails: that is what they are for.
//!
//! Not here, because the model stays right without them: that a run publishes only on the newest (of two with one
//! number the higher run id answers anyway), that progress is deleted before its rows (nobody that the floor admits
//! reads either), and that a version never exceeds its chunk's end. The first saves work, the others keep rows equal.

/// A rule of the hand-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Rule {
    /// Rows are whole cells, not differences.
    WholeCells,
    /// Of a cell's rows the highest version wins, not the latest.
    HighestVersionWins,
    /// A start's rows are written only by who read every offset from it on.
    ReadFromTheStart,
    /// Progress goes in after the rows it speaks of.
    RowsBeforeProgress,
    /// A gap is durable before any row that lacks its offsets.
    GapBeforeRows,
    /// A chunk is complete once a record at or past its end is delivered.
    CompleteByDelivery,
    /// Progress of a chunk's start does not pass a cut that is behind it.
    ShowCutsFirst,
    /// A cut is published only once every worker had time to look for it.
    LetCutsSettle,
    /// Workers look for cuts, and read again what they have passed.
    LookForCuts,
    /// Of a start's progress the highest redo wins, whatever arrives late.
    HighestRedoWins,
    /// A worker lets go of a start whose progress was voided, and begins it anew.
    BeginRedosAnew,
    /// A worker goes to what is open behind it.
    FillWhatIsOpen,
    /// The filter of a start is warmed over what lies before it.
    WarmFilter,
    /// A query takes the mark's rows and those of chunks from there on; nothing else.
    SelectStarts,
    /// A query reads publication and progress before the rows.
    ProgressBeforeRows,
    /// A query reads the gaps after the rows.
    GapsAfterRows,
    /// The merging statement checks the floor once more.
    StatementChecksFloor,
    /// Publications below the floor are ignored.
    IgnoreBelowFloor,
    /// A run waits until its cut has caught up.
    WaitForCut,
    /// A run that waited in vain falls back to the chunk boundary.
    FallBack,
    /// A run that sent its publication does not withdraw the cut: it may still arrive.
    KeepCutOnceSent,
    /// A mark is never below its parent's.
    MarkNotBelowParent,
    /// A run fails where the archive lacks what was published from it.
    ArchiveHoldsPublished,
    /// A mark does not pass what the archive lacks.
    MarkStopsAtArchiveGap,
    /// A run computes over offsets below its mark, not below the archive's end.
    ComputeBelowMark,
    /// Days are dirty by offset, not by archive version.
    DirtyByOffset,
    /// Every try has a fresh run id.
    FreshRunId,
    /// A publication's clean days are its parent's.
    CleanDaysOfParent,
    /// The batch layer drops all repeats.
    BatchDropsRepeats,
    /// Nothing is deleted while statements run that checked the floor before it rose.
    WaitAfterFloor,
    /// Runs that the floor's parent holds are kept.
    KeepRunsOfParent,
    /// The floor's parents are not forgotten: they say which runs are kept.
    KeepParentsOfFloor,
}

/// All of them.
pub(super) const RULES: [Rule; 32] = [
    Rule::WholeCells,
    Rule::HighestVersionWins,
    Rule::ReadFromTheStart,
    Rule::RowsBeforeProgress,
    Rule::GapBeforeRows,
    Rule::CompleteByDelivery,
    Rule::ShowCutsFirst,
    Rule::LetCutsSettle,
    Rule::LookForCuts,
    Rule::HighestRedoWins,
    Rule::BeginRedosAnew,
    Rule::FillWhatIsOpen,
    Rule::WarmFilter,
    Rule::SelectStarts,
    Rule::ProgressBeforeRows,
    Rule::GapsAfterRows,
    Rule::StatementChecksFloor,
    Rule::IgnoreBelowFloor,
    Rule::WaitForCut,
    Rule::FallBack,
    Rule::KeepCutOnceSent,
    Rule::MarkNotBelowParent,
    Rule::ArchiveHoldsPublished,
    Rule::MarkStopsAtArchiveGap,
    Rule::ComputeBelowMark,
    Rule::DirtyByOffset,
    Rule::FreshRunId,
    Rule::CleanDaysOfParent,
    Rule::BatchDropsRepeats,
    Rule::WaitAfterFloor,
    Rule::KeepRunsOfParent,
    Rule::KeepParentsOfFloor,
];
