-- The tables in which a database keeps its collections. Beside them stands, for each collection, a table
-- boxwood."<name>_codes"(id BIGINT PRIMARY KEY, generation BIGINT NOT NULL, d00 UTINYINT NOT NULL, .., d31 UTINYINT NOT
-- NULL), which has a last column `fine UTINYINT[128] NOT NULL` where the collection has fine codes; generation is that of
-- the collection when the row was last written. And, where the collection keeps its embeddings,
-- boxwood."<name>_embeddings"(id BIGINT PRIMARY KEY, embedding FLOAT[<the encoder's dimensions>] NOT NULL).
CREATE SCHEMA IF NOT EXISTS boxwood;

CREATE TABLE IF NOT EXISTS boxwood.collections (
    name VARCHAR PRIMARY KEY,
    uuid VARCHAR NOT NULL UNIQUE,              -- the folder of its index: <database file>.boxwood/<uuid>
    generation BIGINT NOT NULL,                -- raised by every change of its rows
    table_name VARCHAR,                        -- the user's table of metadata, if there is one
    id_column VARCHAR NOT NULL,
    encoder VARCHAR,                           -- open_clip model/pretrained tag; NULL: codes came from outside
    encoder_fingerprint VARCHAR NOT NULL,      -- fingerprints: empty where there is none
    head_fingerprint VARCHAR NOT NULL,
    quantizer_fingerprint VARCHAR NOT NULL,    -- of head and quantizer: equal where codes can be compared
    quantizer_offset DOUBLE,
    quantizer_scale DOUBLE,
    created TIMESTAMP NOT NULL,
    owns_table BOOLEAN NOT NULL DEFAULT false, -- Boxwood made that table, and drops it with the collection
    texts BLOB,                                -- phrases (JSON) or their embeddings (.npy), for the head that is to come
    folder VARCHAR,                            -- the folder of the index where the database is in memory
    fine BOOLEAN,                              -- fine codes wanted? NULL: where embeddings are at hand
    fine_fingerprint VARCHAR NOT NULL DEFAULT '', -- of how they are made; empty: none, or none yet
    fine_head_fingerprint VARCHAR NOT NULL DEFAULT '',
    fine_quantizer_offset DOUBLE,
    fine_quantizer_scale DOUBLE,
    keep_embeddings BOOLEAN NOT NULL DEFAULT false -- in boxwood."<name>_embeddings", to change the head later
);

CREATE TABLE IF NOT EXISTS boxwood.heads (
    fingerprint VARCHAR PRIMARY KEY,
    kind VARCHAR NOT NULL,
    data BLOB NOT NULL
);

-- Phrases with their codes: the vocabulary, and what was searched. The shell searches by these.
CREATE TABLE IF NOT EXISTS boxwood.texts (
    collection VARCHAR NOT NULL,
    text VARCHAR NOT NULL,
    code UTINYINT[] NOT NULL,
    fine UTINYINT[],                           -- NULL where the collection has no fine codes
    quantizer_fingerprint VARCHAR NOT NULL,    -- the collection's when these were made; others are not used
    PRIMARY KEY (collection, text)
);

-- Rows of small appends, which the codes table does not have yet: all of an append in one row here, as a row of that table
-- costs much more where it comes alone. They are moved there when the index takes them in, or one
-- of them is deleted or rewritten. No id is in both.
CREATE TABLE IF NOT EXISTS boxwood.appended (
    collection VARCHAR NOT NULL,
    generation BIGINT NOT NULL,                -- the collection's, by the append
    ids BLOB NOT NULL,                         -- of n rows: 8 bytes each, little end first
    codes BLOB NOT NULL,                       -- 32 each
    fine BLOB                                  -- 128 each, or NULL where the collection has no fine codes
);

-- What the index on disk has at least: the manifest of this generation, or of a later one. Written after that manifest. So
-- the rows that the index may not know are those of the codes table and `appended` with a higher generation, and those of
-- `deleted`.
CREATE TABLE IF NOT EXISTS boxwood.indexes (
    collection VARCHAR PRIMARY KEY,
    generation BIGINT NOT NULL,
    checksum BIGINT NOT NULL                   -- of that manifest
);

-- Images whose codes were deleted, until an index without them is on disk.
CREATE TABLE IF NOT EXISTS boxwood.deleted (
    collection VARCHAR NOT NULL,
    id BIGINT NOT NULL,
    generation BIGINT NOT NULL                 -- the collection's, by the deletion
);

-- Models with a name; the newest version rules. Each name has a view concepts.<name> of the rows that it finds.
CREATE TABLE IF NOT EXISTS boxwood.concepts (
    collection VARCHAR NOT NULL,
    name VARCHAR NOT NULL CHECK (regexp_full_match(name, '[A-Za-z_][A-Za-z0-9_]{0,62}')),
    version BIGINT NOT NULL,
    model VARCHAR NOT NULL,                    -- a JSON document
    learner VARCHAR NOT NULL,
    quantizer VARCHAR NOT NULL,                -- the collection's when it was saved; with another it is not used
    positives BIGINT[] NOT NULL,               -- the labels that it was trained on, to train it again
    negatives BIGINT[] NOT NULL,
    note VARCHAR NOT NULL DEFAULT '',
    created TIMESTAMP NOT NULL DEFAULT current_localtimestamp(),
    PRIMARY KEY (collection, name, version)
);

-- What people do in the page: their query, their marks, their rounds.
CREATE TABLE IF NOT EXISTS boxwood.sessions (
    id VARCHAR PRIMARY KEY,
    collection VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    revision BIGINT NOT NULL,                  -- raised by every change, so that none is written over unseen
    state VARCHAR NOT NULL,                    -- JSON
    created TIMESTAMP NOT NULL,
    updated TIMESTAMP NOT NULL
);
