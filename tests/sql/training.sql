-- Training and refinement on the collection of functions.sql, and that they are the same search.

SELECT learner, estimators, boxes, terms, positives, negatives, random_negatives, fallback, milliseconds >= 0 AS timed
  FROM boxwood_train(getvariable('ix'), positives := [0, 80, 160], negatives := [5, 10], guard := false);

SELECT learner, estimators, boxes > 0 AS boxes, positives, negatives, random_negatives, milliseconds >= 0 AS timed
  FROM boxwood_train(getvariable('ix'), positives := [0, 80, 160], negatives := [5, 10], learner := 'ensemble',
                     random_negatives := 100);

SELECT learner, estimators, positives, negatives, random_negatives
  FROM boxwood_train(getvariable('ix'), positives := [0, 80], learner := 'branch', prior := false, random_negatives := 50);

-- a NULL number of random rows is the learner's own
SELECT random_negatives
  FROM boxwood_train(getvariable('ix'), positives := [0, 80], learner := 'branch', random_negatives := NULL);

-- nothing is told of what nobody knows
SELECT precision, precision_low, precision_high, recall, recall_low, recall_high, estimated_rows, note
  FROM boxwood_train(getvariable('ix'), positives := [0, 80], learner := 'branch');

-- a code that says what is sought, without a positive; a NULL one is none
SELECT learner, positives, negatives
  FROM boxwood_train(getvariable('ix'), query := list_resize([7], 32, 90), negatives := [5], query_fine := NULL);

SELECT count(DISTINCT model) AS models FROM (
    SELECT model FROM boxwood_train(getvariable('ix'), positives := [0, 80], query := NULL)
    UNION ALL
    SELECT model FROM boxwood_train(getvariable('ix'), positives := [0, 80]));

-- labels are sets; NULL is what list() gives for no rows
SELECT count(DISTINCT model) AS models FROM (
    SELECT model FROM boxwood_train(getvariable('ix'), positives := [0, 80, 160], negatives := [5, 10], seed := 3)
    UNION ALL
    SELECT model FROM boxwood_train(getvariable('ix'), positives := [160, 0, 80, 80], negatives := [10, 5], seed := 3));

SELECT count(DISTINCT model) AS models FROM (
    SELECT model FROM boxwood_train(getvariable('ix'), positives := [0, 80], negatives := NULL)
    UNION ALL
    SELECT model FROM boxwood_train(getvariable('ix'), positives := [0, 80], negatives := [])
    UNION ALL
    SELECT model FROM boxwood_train(getvariable('ix'), positives := [0, 80]));

SET VARIABLE trained = (SELECT model FROM boxwood_train(
    getvariable('ix'), positives := [0, 80, 160, 240], negatives := [5, 10], random_negatives := 200, seed := 7));

SELECT count(*) AS differences FROM (
    (FROM boxwood_search(getvariable('ix'), model := getvariable('trained'))
     EXCEPT
     SELECT id, votes, score FROM boxwood_refine(getvariable('ix'), positives := [0, 80, 160, 240], negatives := [5, 10],
                         random_negatives := 200, seed := 7))
    UNION ALL
    (SELECT id, votes, score FROM boxwood_refine(getvariable('ix'), positives := [0, 80, 160, 240], negatives := [5, 10],
                         random_negatives := 200, seed := 7)
     EXCEPT
     FROM boxwood_search(getvariable('ix'), model := getvariable('trained'))));

-- the positives are found
SELECT count(*) AS found
  FROM boxwood_refine(getvariable('ix'), positives := [0, 80, 160, 240], negatives := [5, 10],
                      random_negatives := 200, seed := 7)
 WHERE id IN (0, 80, 160, 240);

-- the rows say what they were found by
SELECT DISTINCT learner FROM boxwood_refine(getvariable('ix'), positives := [0, 80], learner := 'branch');
