-- The extension's functions on a small collection: 600 rows in two segments, ids 0, 5, 10, ...
-- ix is the variable with its index folder, m a model of two estimators with a score.

SELECT rows, generation, format, min_id, max_id, encoder, head, quantizer, uuid
  FROM boxwood_info(getvariable('ix')) ORDER BY segment;

SELECT count(*) AS segments FROM boxwood_info(getvariable('empty'));

-- itself first; k beyond the rows gives them all
SELECT id, round(distance, 4) AS distance FROM boxwood_knn(getvariable('ix'), like := 250, k := 5);

SELECT count(*) AS n, count(DISTINCT id) AS ids, min(distance) AS nearest
  FROM boxwood_knn(getvariable('ix'), like := 250, k := 10000);

SELECT count(*) AS n FROM boxwood_knn(getvariable('ix'), like := 250);

SELECT id, distance FROM boxwood_knn(getvariable('empty'), q := list_resize([0], 32, 0), k := 3);

-- a recall gives as many rows
SELECT count(*) AS n, min(distance) AS nearest FROM boxwood_knn(getvariable('ix'), like := 250, k := 50, recall := 0.5);

-- of a model's rows, of a list's, of both; ids that the index lacks are passed over
SELECT (SELECT list(id) FROM boxwood_knn(getvariable('ix'), like := 250, k := 7, within := getvariable('m')))
     = (SELECT list(n.id ORDER BY n.distance, n.id)[:7]
          FROM boxwood_knn(getvariable('ix'), like := 250, k := 10000) n
          JOIN boxwood_search(getvariable('ix'), model := getvariable('m')) USING (id)) AS same;

SELECT id, round(distance, 4) AS distance
  FROM boxwood_knn(getvariable('ix'), like := 250, ids := [250, 5, 5, 1, 10, 2990], recall := 0.9);

SELECT count(*) AS n FROM boxwood_knn(getvariable('ix'), like := 250, within := NULL, ids := NULL);

SELECT count(*) AS n
  FROM boxwood_knn(getvariable('ix'), like := 250, k := 10000, within := getvariable('m'), ids := range(0, 3000));

-- a box, a box of no dimensions, a box of one value
SELECT count(*) AS n, sum(id) AS ids
  FROM boxwood_range(getvariable('ix'), dims := [0, 3], lo := [50, 0], hi := [150, 200]);

SELECT count(*) AS n FROM boxwood_range(getvariable('ix'), dims := [], lo := [], hi := []);

SELECT (SELECT count(*) FROM boxwood_range(getvariable('ix'), dims := [7], lo := [12], hi := [12]))
     = (SELECT count(*) FROM codes WHERE d07 = 12) AS same;

-- a model
SELECT id, votes, score FROM boxwood_search(getvariable('ix'), model := getvariable('m'))
 ORDER BY score DESC, id LIMIT 5;

SELECT count(*) AS n FROM boxwood_search(getvariable('ix'), model := getvariable('m'));

SELECT votes, count(*) AS n, min(id) AS first
  FROM boxwood_search(getvariable('ix'), model := getvariable('m')) GROUP BY votes ORDER BY votes;

SELECT count, rows_total, blocks, fine_rows, blocks_outscored,
       blocks - blocks_pruned - blocks_contained - blocks_scanned BETWEEN 0 AND blocks_planes AS seen, bytes > 0 AS read
  FROM boxwood_count(getvariable('ix'), model := getvariable('m'));

SELECT count, rows_total, blocks FROM boxwood_count(getvariable('empty'), model := getvariable('m'));

SELECT estimator, box, ranges, rows, path, blocks, complete
  FROM boxwood_explain(getvariable('ix'), model := getvariable('m')) ORDER BY estimator, box;

FROM boxwood_boxes(getvariable('m'));

SELECT boxwood_sql(getvariable('m')) AS expression;

SELECT id, boxwood_votes(getvariable('m'), code) AS votes, boxwood_score(getvariable('m'), code) AS score
  FROM lists WHERE id IN (5, 1000) ORDER BY id;

-- NULL in, NULL out
SELECT boxwood_sql(NULL) AS a, boxwood_votes(NULL, list_resize([0::UTINYINT], 32, 0)) AS b,
       boxwood_votes(getvariable('m'), NULL) AS c, boxwood_distance(NULL, NULL) AS d,
       boxwood_knn_list(getvariable('ix'), NULL, 3) AS e,
       boxwood_knn_list(getvariable('ix'), list_resize([0::UTINYINT], 32, 0), 3, NULL) AS f;

SELECT boxwood_distance(list_resize([3::UTINYINT], 32, 0), list_resize([0::UTINYINT, 4], 32, 0)) AS five;

-- a fixed array is a list too
SELECT boxwood_distance(list_resize([3::UTINYINT], 32, 0)::UTINYINT[32], list_resize([0::UTINYINT, 4], 32, 0)) AS five;

-- lateral k-NN
SELECT c.id, n.id AS neighbour, round(n.distance, 4) AS distance
  FROM (SELECT id, unnest(boxwood_knn_list(getvariable('ix'), code, 3)) AS n FROM lists WHERE id IN (5, 10)) c
 ORDER BY c.id, distance, neighbour;
