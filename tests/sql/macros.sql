-- The macros by collection names, as a person types them; photos(id, uri, camera) is the user's table.

SELECT h.id, p.uri, round(h.distance, 4) AS distance
  FROM search_text('photos', 'a leopard', k := 3) h JOIN photos p USING (id) ORDER BY distance, h.id;

SELECT count(*) AS n FROM search_text('photos', 'a leopard');

SELECT count(*) AS n, min(distance) AS nearest FROM search_code('photos', (list_resize([7], 32, 90)), k := 20);

SELECT id FROM search_like('photos', 50, k := 1);

SELECT camera, count(*) AS n
  FROM search_model('photos', getvariable('m')) r JOIN photos p USING (id)
 WHERE p.id >= 100 GROUP BY camera ORDER BY camera;

SELECT count FROM count_model('photos', getvariable('m'));

SELECT estimator, box, complete FROM explain_model('photos', getvariable('m')) WHERE rows > 0 ORDER BY ALL;

SELECT sum(rows) AS rows FROM collection_info('photos');

-- a refinement, named and by position, joined, filtered and ranked
SELECT (SELECT count(*) FROM refine('photos', positives := [0, 80, 160], negatives := [5, 10], seed := 1))
     = (SELECT count(*) FROM refine('photos', [0, 80, 160], [5, 10], seed := 1)) AS same;

SELECT count(*) FILTER (p.camera = 'A') > 0 AS some_of_a
  FROM refine('photos', positives := [0, 80, 160], negatives := [5, 10], random_negatives := 100) r
  JOIN photos p USING (id) WHERE p.id < 2000;

SELECT r.id FROM refine('photos', positives := [0, 80, 160], learner := 'branch', random_negatives := 100) r
 WHERE r.id IN (0, 80, 160) ORDER BY r.id;

-- words in place of positives are their code
SELECT (SELECT list(r ORDER BY r.id) FROM refine('photos', negatives := [5, 10], text := 'a leopard') r)
     = (SELECT list(r ORDER BY r.id)
          FROM refine('photos', negatives := [5, 10], query := clip_text('photos', 'a leopard')) r) AS same;

SELECT learner, positives, negatives FROM train_model('photos', text := 'a leopard', negatives := [5]);

SELECT count(*) AS n
  FROM search_text('photos', 'a leopard', k := 100) a JOIN search_like('photos', 0, k := 600) b USING (id);

SELECT learner, positives FROM train_model('photos', positives := [0, 80], learner := 'branch');

PREPARE near AS SELECT count(*) AS n, min(distance) AS nearest FROM search_like(?, ?, k := ?);

EXECUTE near('photos', 25, 4);

EXECUTE near('photos', 30, 7);

-- the parameters of a macro may be parameters of a statement
PREPARE again AS SELECT count(*) AS n FROM refine(?, positives := ?, negatives := ?, random_negatives := 50) WHERE id = ?;

EXECUTE again('photos', [0, 80], [5], 80);

-- what comes to one stored phrase is known without an encoder; NULL in, NULL out
SELECT clip_text('photos', 'leopard', template := 'a {}') = clip_text('photos', 'a leopard') AS filled,
       clip_text('photos', ['a lion'], weights := [2]) = clip_text('photos', 'a lion') AS weighed,
       clip_text('photos', NULL) AS no_text, clip_text(NULL, 'a lion') AS no_collection,
       clip_text_fine('photos', 'a lion') AS no_fine, clip_image('photos', NULL) AS no_image;

SELECT count(*) AS n FROM search_text('photos', 'lion', k := 3, template := 'a {}');

PREPARE worded AS SELECT count(*) AS n, min(distance) AS nearest FROM search_text('photos', ?, k := 5, template := ?);

EXECUTE worded('leopard', 'a {}');
