-- Words and pictures to codes where there is an encoder: in Python, which runs it in boxwood_clip_text and
-- boxwood_clip_image, a chunk of rows at a time. In the shell, shell.sql has these macros. NULL in, NULL out.

-- The code of a text; of several the code between them, as near to each as its weight says (1 each), and away from
-- those with a negative one. A template ('a photo of a {}') is what each is put into; of several the average is taken.
CREATE OR REPLACE TEMP MACRO clip_text(collection, text, weights := NULL, template := NULL) AS
    boxwood_clip_text(
        collection::VARCHAR, boxwood_strings(text), weights::DOUBLE[], boxwood_strings(template), false);

CREATE OR REPLACE TEMP MACRO clip_text_fine(collection, text, weights := NULL, template := NULL) AS
    boxwood_clip_text(
        collection::VARCHAR, boxwood_strings(text), weights::DOUBLE[], boxwood_strings(template), true);

-- The code of an image file: of its path, or of what it holds, a BLOB.
CREATE OR REPLACE TEMP MACRO clip_image(collection, image) AS
    boxwood_clip_image(
        collection::VARCHAR,
        CASE WHEN typeof(image) <> 'BLOB' THEN try_cast(image AS VARCHAR) END,
        CASE WHEN typeof(image) = 'BLOB' THEN try_cast(image AS BLOB) END,
        false);

CREATE OR REPLACE TEMP MACRO clip_image_fine(collection, image) AS
    boxwood_clip_image(
        collection::VARCHAR,
        CASE WHEN typeof(image) <> 'BLOB' THEN try_cast(image AS VARCHAR) END,
        CASE WHEN typeof(image) = 'BLOB' THEN try_cast(image AS BLOB) END,
        true);
