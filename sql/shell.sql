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

-- and -> how to see what that index may not have
SET VARIABLE boxwood_rows = (
    SELECT coalesce(
        map_from_entries(list({
            'k': name,
            'v': boxwood_rows_sql(
                current_database(), name, uuid, getvariable('boxwood_index')[name],
                table_name, id_column, fine_fingerprint <> '')})),
        MAP {}::MAP(VARCHAR, VARCHAR))
    FROM boxwood.collections
);
SET VARIABLE boxwood_database = current_database();
SET VARIABLE boxwood_names = (SELECT coalesce(string_agg(name, ', ' ORDER BY name), 'none') FROM boxwood.collections);

-- (collection, phrase) -> code, and fine code: there is no encoder here, only what was encoded before
SET VARIABLE boxwood_texts = (
    SELECT coalesce(
        map_from_entries(list({'k': {'c': t.collection, 't': t.text}, 'v': t.code})),
        MAP {}::MAP(STRUCT(c VARCHAR, t VARCHAR), UTINYINT[]))
    FROM boxwood.texts t JOIN boxwood.collections c
      ON c.name = t.collection AND c.quantizer_fingerprint = t.quantizer_fingerprint
);
SET VARIABLE boxwood_fine_texts = (
    SELECT coalesce(
        map_from_entries(list({'k': {'c': t.collection, 't': t.text}, 'v': t.fine})),
        MAP {}::MAP(STRUCT(c VARCHAR, t VARCHAR), UTINYINT[]))
    FROM boxwood.texts t JOIN boxwood.collections c
      ON c.name = t.collection AND c.quantizer_fingerprint = t.quantizer_fingerprint
    WHERE t.fine IS NOT NULL
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

-- The one phrase that texts, weights and templates come to; NULL where they are a mixture.
CREATE OR REPLACE TEMP MACRO boxwood_phrase(texts, weights, templates) AS
    CASE WHEN len(texts) = 1 AND coalesce(len(templates), 1) = 1 AND coalesce(len(weights), 1) = 1
              AND coalesce(weights[1], 1) > 0
         THEN replace(coalesce(templates[1], '{}'), '{}', texts[1])
    END;

CREATE OR REPLACE TEMP MACRO boxwood_stored(collection, phrase) AS
    coalesce(
        getvariable('boxwood_texts')[{'c': collection::VARCHAR, 't': phrase::VARCHAR}],
        CASE WHEN boxwood_path(collection) IS NULL THEN NULL
             WHEN phrase IS NULL THEN error(
                'the shell has no encoder, so it knows the codes of single texts alone, not of mixtures of texts or '
                || 'templates: ask for the code in Python, and search by that with search_code')
             ELSE error(
                'the shell has no encoder, and the code of ''' || phrase
                || ''' is not stored: search for it once from Python, which stores it. Stored for ''' || collection
                || ''' are, for example: ' || coalesce(nullif(boxwood_phrases(collection, phrase), ''), 'none'))
        END
    );

CREATE OR REPLACE TEMP MACRO clip_text(collection, text, weights := NULL, template := NULL) AS
    CASE WHEN collection IS NOT NULL AND text IS NOT NULL
         THEN boxwood_stored(
            collection, boxwood_phrase(boxwood_strings(text), weights::DOUBLE[], boxwood_strings(template)))
    END;

CREATE OR REPLACE TEMP MACRO clip_text_fine(collection, text, weights := NULL, template := NULL) AS
    CASE WHEN clip_text(collection, text, weights := weights, template := template) IS NOT NULL
         THEN getvariable('boxwood_fine_texts')[{
            'c': collection::VARCHAR,
            't': boxwood_phrase(boxwood_strings(text), weights::DOUBLE[], boxwood_strings(template))}]
    END;

CREATE OR REPLACE TEMP MACRO clip_image(collection, image) AS
    CASE WHEN collection IS NOT NULL AND image IS NOT NULL
         THEN CASE WHEN boxwood_path(collection) IS NOT NULL THEN error(
            'the shell has no encoder, so it cannot embed images: search from Python, or for images like one of the '
            || 'collection with search_like')::UTINYINT[] END
    END;

CREATE OR REPLACE TEMP MACRO clip_image_fine(collection, image) AS clip_image(collection, image);
