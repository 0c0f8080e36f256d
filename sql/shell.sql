-- Boxwood in the DuckDB shell, without Python:
--   duckdb -unsigned photos.duckdb
--   LOAD '<package folder>/boxwood.duckdb_extension';
--   .read <package folder>/sql/macros.sql
--   .read <package folder>/sql/shell.sql
-- Read this file again when collections were created, changed or repaired, or phrases stored meanwhile.

-- collection -> index folder, beside the database file
SET VARIABLE boxwood_index = (
    SELECT coalesce(
        map_from_entries(list({'k': name, 'v': coalesce(c.folder, d.path || '.boxwood/' || c.uuid)})),
        MAP {}::MAP(VARCHAR, VARCHAR))
    FROM boxwood.collections c, duckdb_databases() d
    WHERE d.database_name = current_database()
);

-- collection -> what is wrong with its index, of those where something is
SET VARIABLE boxwood_problem = (
    SELECT coalesce(
        map_from_entries(list({'k': name, 'v': problem})),
        MAP {}::MAP(VARCHAR, VARCHAR))
    FROM (
        SELECT name, boxwood_check(getvariable('boxwood_index')[name], uuid, generation) AS problem
        FROM boxwood.collections)
    WHERE problem IS NOT NULL
);

-- (collection, phrase) -> code, and fine code: there is no encoder here, only what was encoded before
SET VARIABLE boxwood_texts = (
    SELECT coalesce(
        map_from_entries(list({'k': {'c': t.collection, 't': t.text}, 'v': t.code})),
        MAP {}::MAP(STRUCT(c VARCHAR, t VARCHAR), UTINYINT[]))
    FROM boxwood.texts t
);
SET VARIABLE boxwood_fine_texts = (
    SELECT coalesce(
        map_from_entries(list({'k': {'c': t.collection, 't': t.text}, 'v': t.fine})),
        MAP {}::MAP(STRUCT(c VARCHAR, t VARCHAR), UTINYINT[]))
    FROM boxwood.texts t WHERE t.fine IS NOT NULL
);

-- Five stored phrases of a collection, those spelled most like the given one first. The parameters are zipped to the
-- phrases, and members taken by subscript, because a lambda in an argument of a table function sees neither macro
-- parameters nor e.member (DuckDB 1.5 and 2.0).
CREATE OR REPLACE TEMP MACRO boxwood_phrases(collection, phrase) AS
    array_to_string(
        list_transform(
            list_slice(
                list_reverse_sort(
                    list_transform(
                        list_filter(
                            list_zip(
                                map_keys(getvariable('boxwood_texts')),
                                list_resize([collection], cardinality(getvariable('boxwood_texts')), collection),
                                list_resize([phrase], cardinality(getvariable('boxwood_texts')), phrase)),
                            lambda e: e[1]['c'] = e[2]),
                        lambda e: {'likeness': jaro_winkler_similarity(e[1]['t'], e[3]), 't': e[1]['t']})),
                1, 5),
            lambda e: '''' || e['t'] || ''''),
        ', ');

CREATE OR REPLACE TEMP MACRO clip_text(collection, phrase) AS
    coalesce(
        getvariable('boxwood_texts')[{'c': collection::VARCHAR, 't': phrase::VARCHAR}],
        CASE WHEN boxwood_path(collection) IS NOT NULL THEN error(
            'the shell has no encoder, and the code of ' || coalesce('''' || phrase::VARCHAR || '''', 'NULL')
            || ' is not stored: search for it once from Python, which stores it. Stored for ''' || collection
            || ''' are, for example: ' || coalesce(nullif(boxwood_phrases(collection, coalesce(phrase, '')), ''), 'none'))
        END
    );

CREATE OR REPLACE TEMP MACRO clip_text_fine(collection, phrase) AS
    CASE WHEN clip_text(collection, phrase) IS NOT NULL
         THEN getvariable('boxwood_fine_texts')[{'c': collection::VARCHAR, 't': phrase::VARCHAR}]
    END;
