-- The catalog of mlc: rows for people and for queries, derived from objects and journal and rebuilt at will.
--
-- How to read it
--   * Tables are append-only; what is current is a view. There is no secondary index and no row is ever changed.
--   * A commit has two names: its id (64 hex digits) and `seq`, the journal sequence number that recorded it. `seq` is
--     an integer, it rises from parent to child, and it is what the catalog itself joins on. An evaluation is named the
--     same way: `evaluation` is the sequence number of its journal record.
--   * `time` is UTC text as it stands in the record (2026-01-31T12:00:00.000000Z): it compares as text, and
--     `time::timestamp` casts it.
--   * A snapshot's tensors are a list of numbers into `tensor_entries`; a tensor that did not change keeps its number,
--     so ten thousand snapshots cost what changed between them. `tensors` is the view that spells them out.
--   * An evaluation belongs to (snapshot, suite digest, limit). `measurements` and `metrics` hold what was measured;
--     `evaluations` is the view that says it per commit: commit, suite, metric, value, n.
--   * Predictions go in by slices after their evaluation; `loaded` says which slices are in, in the same transaction.
-- A catalog whose schema number differs from the program's is rebuilt, never migrated.

create table schema_number (number integer not null);

-- one row per journal record that has been projected: the last one says how far the catalog is
create table journal (seq bigint not null, hash varchar not null, kind varchar not null, txid varchar, author varchar, time varchar);

-- what could not be read while projecting: the rows that depend on it are missing; `mlc fsck` tells more
create table unreadable (seq bigint not null, object varchar not null, sentence varchar not null);

create table commits (
    seq bigint not null,              -- the journal record that made it
    commit varchar not null,
    parent_seqs bigint[] not null,    -- seq of each parent, in order
    generation integer not null,      -- 0 for a root, else 1 + the largest of the parents
    snapshot varchar not null,
    branch varchar,                   -- the branch it was made on; null when it was kept without a ref
    op varchar not null,
    op_version integer not null,
    params json not null,
    author varchar not null,
    time varchar not null,
    message varchar not null,
    outcome varchar not null,         -- of its own verdict; `outcomes` knows of later ones
    tensors_total integer not null,
    tensors_changed integer not null,
    bytes_logical bigint not null,    -- of the changed tensors
    bytes_stored bigint not null,     -- what they cost in the pack
    codecs json not null,             -- codec -> number of tensors
    record json not null              -- the canonical commit
);

create table parents (commit varchar not null, ordinal integer not null, parent varchar not null);

create table snapshots (
    snapshot varchar not null,
    kind varchar not null,            -- model or adapter
    base varchar,                     -- the snapshot an adapter sits on
    tensor_count integer not null,
    file_count integer not null,
    tensor_bytes bigint not null,     -- logical
    file_bytes bigint not null,
    entries integer[] not null        -- into tensor_entries, in the snapshot's order
);

create table tensor_entries (entry integer not null, name varchar not null, dtype varchar not null, shape bigint[] not null, digest varchar not null);

create view tensors as
    select s.snapshot, t.name, t.dtype, t.shape, t.digest
    from (select snapshot, unnest(entries) as entry from snapshots) s join tensor_entries t using (entry);

create table deltas (
    commit varchar not null,
    tensor varchar not null,
    base varchar,
    target varchar not null,
    codec varchar not null,
    bytes bigint not null,            -- stored
    bytes_logical bigint not null,
    rank integer,
    nnz bigint,
    l2 double,
    rel_l2 double,
    max_abs double
);

create table objects (
    digest varchar not null,
    kind varchar not null,            -- tensor or blob
    size bigint not null,             -- decoded
    stored bigint not null,           -- in its pack
    codec varchar,
    base varchar,                     -- what it is encoded against
    depth integer,
    location varchar not null,        -- the pack
    seq bigint not null               -- the journal record that named the pack
);

create table datasets (commit varchar not null, role varchar not null, name varchar not null, digest varchar not null, bytes bigint not null);
create table artifacts (commit varchar not null, kind varchar not null, key varchar not null, digest varchar not null, bytes bigint not null);

create table measurements (
    evaluation bigint not null,       -- the journal record that holds it
    id varchar not null,              -- Evaluation.id, as commits name it
    snapshot varchar not null,
    suite varchar not null,
    suite_digest varchar not null,
    kind varchar not null,
    n bigint not null,
    "limit" bigint,
    scorer varchar not null,
    predictions varchar not null,     -- the columnar object
    record varchar not null           -- the object of the evaluation itself
);
create table metrics (evaluation bigint not null, metric varchar not null, value double);
create table predictions (
    evaluation bigint not null,
    example varchar not null,
    answer varchar,
    correct boolean,
    score double,
    logprob double,
    slice varchar
);
create table loaded (evaluation bigint not null, first bigint not null, rows bigint not null, last boolean not null);

create view suites as
    select suite, suite_digest, any_value(kind) as kind, min(evaluation) as first_evaluation, count(*) as evaluations
    from measurements group by suite, suite_digest;

-- the latest measurement of each (snapshot, suite, suite digest, limit), for every commit that has the snapshot
create view evaluations as
    select c.commit, m.suite, x.metric, x.value, m.n, m.evaluation, m.snapshot, m.suite_digest, m.kind, m."limit", m.scorer
    from (
        select * from measurements
        qualify row_number() over (partition by snapshot, suite, suite_digest, "limit" order by evaluation desc) = 1
    ) m
    join metrics x using (evaluation)
    join commits c using (snapshot);

-- a verdict given after the commit was made: somebody accepted it
create table acceptances (seq bigint not null, commit varchar not null, outcome varchar not null, against varchar, verdict json not null);
-- what each rule said, for every verdict (`seq`: the commit's own, or that of the acceptance)
create table verdicts (
    commit varchar not null,
    seq bigint not null,
    rule varchar not null,
    suite varchar,
    metric varchar not null,
    "limit" double,
    got double,
    p double,
    n bigint,
    outcome varchar not null,
    action varchar not null,
    sentence varchar not null
);
create view outcomes as
    select c.commit, coalesce(a.outcome, c.outcome) as outcome
    from commits c left join (select commit, arg_max(outcome, seq) as outcome from acceptances group by commit) a using (commit);

create table reflog (
    seq bigint not null,
    ordinal integer not null,
    name varchar not null,
    old varchar,
    new varchar,
    time varchar not null,
    author varchar not null,
    reason varchar not null
);
create view refs as
    select name, commit, seq, time from (
        select name, new as commit, seq, time from reflog
        qualify row_number() over (partition by name order by seq desc, ordinal desc) = 1
    ) where commit is not null;

create view meta as
    select (select number from schema_number) as schema_version, max(seq) as applied_seq, arg_max(hash, seq) as head,
           (select count(*) from unreadable) as unreadable
    from journal;

-- examples that two evaluations judge differently; a and b are evaluation numbers
create macro flips(a, b) as table
    select p.example, p.answer as answer_a, q.answer as answer_b, p.slice,
           case when p.correct then 'negative' else 'positive' end as kind
    from (select * from predictions where evaluation = a) p
    join (select * from predictions where evaluation = b) q using (example)
    where p.correct <> q.correct
    order by kind, example;

-- a commit (full id) or a full ref name and everything behind it, newest first
create macro lineage(rev) as table
    with recursive behind as (
        select c.seq from commits c where c.commit = rev or c.commit = (select r.commit from refs r where r.name = rev)
        union
        select unnest(c.parent_seqs) from behind b join commits c on c.seq = b.seq
    )
    select c.commit, c.generation, c.op, c.author, c.time, c.message, c.snapshot, c.seq
    from commits c join behind b using (seq) order by c.seq desc;

-- what is stored: tensors by codec, everything else together
create view storage as
    select case kind when 'tensor' then codec else kind end as codec, count(*) as objects, sum(size)::bigint as bytes_logical,
           sum(stored)::bigint as bytes_stored
    from objects group by all order by bytes_stored desc;
