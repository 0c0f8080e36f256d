/* index.c - manifests, the process-wide table of open indexes, and what reads an index by id or by row. */
#include "index.h"
#include "segment_format.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define REPAIR "Run: boxwood repair"
#define UNUSED_KEPT 8
#define FEW_DEAD 64 /* one row in so many: fewer dead ones are looked up one by one */

typedef struct bw_index_entry {
    bw_index index;
    bw_deleted **vectors; /* as many as segments; NULL where one has no dead rows */
    uint64_t folder_device, folder_inode;
    char *folder;
    uint8_t *manifest; /* the file's bytes */
    size_t manifest_bytes;
    uint32_t users;
    bool current; /* what the folder's manifest said when it was last read */
    uint64_t last_used;
    struct bw_index_entry *next;
} entry;

/* What bw_index_without makes. Segments and places are those of `base`; so are the bits of dead rows where no
 * id was found. */
typedef struct bw_index_view {
    bw_index index;
    const bw_index *base; /* own hold */
    uint64_t **bits;      /* own ones, NULL where none was found; as many as segments */
    uint32_t users;
} view;

/* table_lock guards the table, users and the segments' holds; it is not held while segments are opened or
 * closed. opening_lock is held while they are opened, so that threads which want the same index at once
 * verify it once; it is taken before table_lock. */
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t opening_lock = PTHREAD_MUTEX_INITIALIZER;
static entry *table;
static uint64_t table_clock;

/* ---- manifests ---- */

static const bw_manifest_header *manifest_header(const uint8_t *manifest) {
    return (const bw_manifest_header *)(const void *)manifest;
}

static const bw_manifest_entry *manifest_entries(const uint8_t *manifest) {
    return (const bw_manifest_entry *)(const void *)(manifest + sizeof(bw_manifest_header));
}

/* The file's bytes, not yet checked. *manifest is owned: bw_free. */
static int32_t read_manifest(const char *folder, uint8_t **manifest, size_t *bytes, bw_error *error) {
    char *path = bw_path_join(folder, BW_MANIFEST_NAME);
    if (path == NULL) {
        return bw_fail_nomem(error, strlen(folder) + sizeof BW_MANIFEST_NAME);
    }
    bw_map map;
    int32_t code = bw_map_open(path, &map, error);
    bw_free(path);
    if (code == BW_MISSING) {
        return bw_fail(
            error, BW_MISSING,
            "there is no Boxwood index at '%s'. Create the collection first, or run: boxwood repair", folder);
    }
    if (code != BW_OK) {
        return code;
    }
    if (map.bytes < bw_manifest_bytes(0) || map.bytes > bw_manifest_bytes(BW_MAX_SEGMENTS)) {
        code = bw_fail(error, BW_CORRUPT, "manifest of '%s': %zu bytes are not a manifest. " REPAIR, folder,
                       map.bytes);
        bw_map_close(&map);
        return code;
    }
    *manifest = bw_alloc(map.bytes);
    if (*manifest == NULL) {
        code = bw_fail_nomem(error, map.bytes);
    } else {
        memcpy(*manifest, map.data, map.bytes);
        *bytes = map.bytes;
    }
    bw_map_close(&map);
    return code;
}

static int32_t check_names(const bw_manifest_entry *entries, uint32_t n, int32_t status, bw_error *error) {
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = 0; j < i; j++) {
            if (memcmp(entries[i].name, entries[j].name, BW_NAME_BYTES) == 0) {
                return bw_fail(error, status, "manifest: segment %s is listed twice", entries[i].name);
            }
        }
    }
    return BW_OK;
}

static int32_t check_manifest(const char *folder, const uint8_t *manifest, size_t bytes, bw_error *error) {
    const bw_manifest_header *header = manifest_header(manifest);
    if (memcmp(header->magic, BW_MANIFEST_MAGIC, sizeof header->magic) != 0) {
        return bw_fail(error, BW_CORRUPT, "manifest of '%s': this is not a manifest. " REPAIR, folder);
    }
    if (header->byte_order == BW_OTHER_BYTE_ORDER) {
        return bw_fail(error, BW_VERSION,
                       "manifest of '%s': written on a machine of the other byte order. " REPAIR, folder);
    }
    if (header->byte_order != BW_BYTE_ORDER) {
        return bw_fail(error, BW_CORRUPT, "manifest of '%s': the byte order mark is damaged. " REPAIR,
                       folder);
    }
    if (header->format != BW_MANIFEST_FORMAT) {
        return bw_fail(error, BW_VERSION, "manifest of '%s': format %u, but this Boxwood reads format %d. %s",
                       folder, header->format, BW_MANIFEST_FORMAT,
                       header->format < BW_MANIFEST_FORMAT ? REPAIR
                                                           : "Update Boxwood, or run: boxwood repair");
    }
    if (header->segments > BW_MAX_SEGMENTS || bytes != bw_manifest_bytes(header->segments)) {
        return bw_fail(error, BW_CORRUPT, "manifest of '%s': %zu bytes are not those of %u segments. " REPAIR,
                       folder, bytes, header->segments);
    }
    uint32_t checksum;
    memcpy(&checksum, manifest + bytes - sizeof checksum, sizeof checksum);
    if (bw_crc32c(0, manifest, bytes - sizeof checksum) != checksum) {
        return bw_fail(error, BW_CORRUPT,
                       "manifest of '%s': checksum does not match; the file is damaged. " REPAIR, folder);
    }
    if (header->zero != 0 || !bw_fingerprints_ok(&header->fingerprints)) {
        return bw_fail(error, BW_CORRUPT, "manifest of '%s': a field of its header is malformed. " REPAIR,
                       folder);
    }
    const bw_manifest_entry *entries = manifest_entries(manifest);
    for (uint32_t i = 0; i < header->segments; i++) {
        const bw_manifest_entry *listed = &entries[i];
        bool whole = listed->deleted_name[0] == '\0'; /* no deletion vector */
        if (!bw_padded_ok(listed->name, BW_NAME_BYTES) || !bw_name_ok(listed->name) ||
            !bw_padded_ok(listed->deleted_name, BW_NAME_BYTES) ||
            (whole ? listed->deleted != 0 || listed->deleted_checksum != 0
                   : !bw_name_ok(listed->deleted_name)) ||
            !bw_all_zero(listed->zeros, sizeof listed->zeros)) {
            return bw_fail(error, BW_CORRUPT, "manifest of '%s': entry %u is malformed. " REPAIR, folder, i);
        }
    }
    return check_names(entries, header->segments, BW_CORRUPT, error);
}

static bool fingerprints_equal(const bw_fingerprints *a, const bw_fingerprints *b) {
    return memcmp(a, b, sizeof *a) == 0; /* padded, both of them */
}

/* That a segment belongs to a collection. */
static int32_t check_kin(const bw_segment *segment, const uint8_t uuid[16],
                         const bw_fingerprints *fingerprints, bw_error *error) {
    const char *name = segment->info.name;
    if (memcmp(segment->uuid, uuid, sizeof segment->uuid) != 0) {
        return bw_fail(error, BW_MISMATCH,
                       "segment %s: belongs to another collection (its UUID differs). " REPAIR, name);
    }
    if (!fingerprints_equal(&segment->fingerprints, fingerprints)) {
        return bw_fail(
            error, BW_MISMATCH,
            "segment %s: made with another encoder, head or quantizer, of codes or of fine codes (its "
            "fingerprints differ). " REPAIR,
            name);
    }
    return BW_OK;
}

static int32_t check_listed(const bw_segment *segment, const bw_manifest_entry *listed, bw_error *error) {
    if (segment->info.rows != listed->rows || segment->info.bytes != listed->bytes ||
        segment->info.generation != listed->generation || segment->header_checksum != listed->checksum) {
        return bw_fail(error, BW_MISMATCH, "segment %s: is not the file that the manifest lists. " REPAIR,
                       segment->info.name);
    }
    return BW_OK;
}

static int32_t check_listed_vector(const bw_deleted *vector, const bw_manifest_entry *listed,
                                   bw_error *error) {
    if (vector->dead.rows != listed->deleted || vector->checksum != listed->deleted_checksum) {
        return bw_fail(error, BW_MISMATCH,
                       "deletion vector %s: is not the file that the manifest lists. " REPAIR, vector->name);
    }
    return BW_OK;
}

/* ---- segments, shared between indexes of one folder ---- */

static void release_segments(bw_segment **segments, uint32_t n) {
    pthread_mutex_lock(&table_lock);
    for (uint32_t i = 0; i < n; i++) {
        if (segments[i] != NULL && --segments[i]->holds > 0) {
            segments[i] = NULL;
        }
    }
    pthread_mutex_unlock(&table_lock);
    for (uint32_t i = 0; i < n; i++) {
        bw_segment_close(segments[i]);
    }
}

/* Whether the file at this path is the very one that is mapped, and nobody wrote to it since. */
static bool same_file(const char *folder, const char *name, const bw_map *map) {
    uint64_t device, inode, modified, bytes;
    char *path = bw_path_join(folder, name);
    bool same = path != NULL && map->settled &&
                bw_file_identity(path, &device, &inode, &modified, &bytes, NULL) == BW_OK &&
                device == map->device && inode == map->inode && modified == map->modified_ns &&
                bytes == map->bytes;
    bw_free(path);
    return same;
}

/* A hold on the segment of this name that some index of the folder has open, or NULL. `guess` is its likely
 * place. */
static bw_segment *find_open_segment(uint64_t device, uint64_t inode, const char *name, uint32_t guess) {
    bw_segment *found = NULL;
    pthread_mutex_lock(&table_lock);
    for (entry *at = table; at != NULL && found == NULL; at = at->next) {
        if (at->folder_device != device || at->folder_inode != inode) {
            continue;
        }
        uint32_t n = at->index.info.segments;
        for (uint32_t i = 0; i < n && found == NULL; i++) {
            bw_segment *segment = at->index.segments[(guess + i) % n];
            if (strcmp(segment->info.name, name) == 0) {
                segment->holds++;
                found = segment;
            }
        }
    }
    pthread_mutex_unlock(&table_lock);
    return found;
}

typedef struct opening {
    const char *folder;
    const bw_manifest_entry *entries;
    uint32_t n;
    bw_segment **segments; /* those that are NULL are to be opened */
    _Atomic uint32_t next;
    pthread_mutex_t lock;
    uint32_t failed; /* the first that could not be opened; n: none */
    int32_t code;
    bw_error error;
} opening;

static void open_some(void *context, uint32_t worker) {
    (void)worker;
    opening *all = context;
    uint32_t i;
    while ((i = atomic_fetch_add(&all->next, 1)) < all->n) {
        if (all->segments[i] != NULL) {
            continue;
        }
        bw_error error;
        int32_t code = bw_segment_open(all->folder, all->entries[i].name, &all->segments[i], &error);
        if (code == BW_OK) {
            all->segments[i]->holds = 1;
            continue;
        }
        pthread_mutex_lock(&all->lock);
        if (i < all->failed) {
            all->failed = i;
            all->code = code;
            all->error = error;
        }
        pthread_mutex_unlock(&all->lock);
        atomic_store(&all->next, all->n); /* later ones need not be tried; earlier ones are under way */
    }
}

/* A hold on each named segment, shared where it is open already. *segments is owned: release_segments,
 * bw_free. */
static int32_t hold_segments(const char *folder, uint64_t device, uint64_t inode,
                             const bw_manifest_entry *entries, uint32_t n, bw_segment ***segments,
                             bw_error *error) {
    opening all = {
        .folder = folder, .entries = entries, .n = n, .failed = n, .lock = PTHREAD_MUTEX_INITIALIZER};
    all.segments = bw_alloc_zero(n, sizeof *all.segments);
    if (all.segments == NULL) {
        return bw_fail_nomem(error, n * sizeof *all.segments);
    }
    uint32_t to_open = 0;
    for (uint32_t i = 0; i < n; i++) {
        bw_segment *segment = find_open_segment(device, inode, entries[i].name, i);
        if (segment != NULL && !same_file(folder, entries[i].name, &segment->map)) {
            release_segments(&segment, 1);
            segment = NULL;
        }
        all.segments[i] = segment;
        to_open += segment == NULL;
    }
    if (to_open > 0) {
        uint32_t threads = bw_thread_count(0);
        bw_parallel(to_open < threads ? to_open : threads, open_some, &all);
    }
    pthread_mutex_destroy(&all.lock);
    if (all.failed < n) {
        release_segments(all.segments, n);
        bw_free(all.segments);
        return bw_fail(error, all.code, "%s", all.error.message);
    }
    *segments = all.segments;
    return BW_OK;
}

/* ---- deletion vectors ---- */

static void close_vectors(bw_deleted **vectors, uint32_t n) {
    for (uint32_t i = 0; vectors != NULL && i < n; i++) {
        bw_deleted_close(vectors[i]);
    }
    bw_free(vectors);
}

/* Those that entries name. They are small beside their segments, so that each index opens its own. *vectors
 * is owned: close_vectors. */
static int32_t open_vectors(const char *folder, const bw_manifest_entry *entries, uint32_t n,
                            bw_segment *const *segments, bw_deleted ***vectors, bw_error *error) {
    bw_deleted **opened = bw_alloc_zero(n, sizeof *opened);
    if (opened == NULL) {
        return bw_fail_nomem(error, n * sizeof *opened);
    }
    int32_t code = BW_OK;
    for (uint32_t i = 0; i < n && code == BW_OK; i++) {
        if (entries[i].deleted_name[0] != '\0') {
            code = bw_deleted_open(folder, entries[i].deleted_name, &opened[i], error);
            if (code == BW_OK) {
                code = bw_deleted_belongs(opened[i], segments[i], error);
            }
        }
    }
    if (code != BW_OK) {
        close_vectors(opened, n);
        return code;
    }
    *vectors = opened;
    return BW_OK;
}

/* ---- the table of open indexes ---- */

static void destroy(entry *gone) {
    while (gone != NULL) {
        entry *next = gone->next;
        close_vectors(gone->vectors, gone->index.info.segments);
        if (gone->index.segments != NULL) {
            release_segments(gone->index.segments, gone->index.info.segments);
        }
        bw_free(gone->index.segments);
        bw_free(gone->index.dead);
        bw_free(gone->index.first_rows);
        bw_free(gone->index.first_blocks);
        bw_free(gone->folder);
        bw_free(gone->manifest);
        bw_free(gone);
        gone = next;
    }
}

/* Everything an index needs but its segments; users 1, not in the table. Takes over *manifest, and sets it to
 * NULL. */
static int32_t make_entry(const char *folder, uint64_t device, uint64_t inode, uint8_t **manifest,
                          size_t bytes, entry **result, bw_error *error) {
    const bw_manifest_header *header = manifest_header(*manifest);
    uint32_t n = header->segments;
    size_t folder_bytes = strlen(folder) + 1;
    entry *made = bw_alloc_zero(1, sizeof *made);
    if (made == NULL) {
        return bw_fail_nomem(error, sizeof *made);
    }
    made->folder = bw_alloc(folder_bytes);
    made->index.dead = bw_alloc_zero(n, sizeof *made->index.dead);
    made->index.first_rows = bw_alloc_zero((size_t)n + 1, sizeof(uint64_t));
    made->index.first_blocks = bw_alloc_zero((size_t)n + 1, sizeof(uint64_t));
    if (made->folder == NULL || made->index.dead == NULL || made->index.first_rows == NULL ||
        made->index.first_blocks == NULL) {
        destroy(made);
        return bw_fail_nomem(error, folder_bytes + ((size_t)n + 1) * 32);
    }
    memcpy(made->folder, folder, folder_bytes);
    made->folder_device = device;
    made->folder_inode = inode;
    made->manifest = *manifest;
    made->manifest_bytes = bytes;
    *manifest = NULL;
    made->users = 1;
    made->index.entry = made;
    made->index.info.generation = header->generation;
    memcpy(made->index.info.uuid, header->uuid, sizeof header->uuid);
    made->index.info.fingerprints = header->fingerprints;
    memcpy(&made->index.info.checksum, made->manifest + bytes - sizeof(uint32_t), sizeof(uint32_t));
    *result = made;
    return BW_OK;
}

static void give_segments(entry *to, bw_segment **segments, bw_deleted **vectors, uint32_t n) {
    bw_index *index = &to->index;
    to->vectors = vectors;
    index->segments = segments;
    index->info.segments = n;
    for (uint32_t i = 0; i < n; i++) {
        if (vectors[i] != NULL) {
            index->dead[i] = vectors[i]->dead;
        }
        index->info.rows += segments[i]->rows - index->dead[i].rows;
        index->info.deleted += index->dead[i].rows;
        index->info.bytes += segments[i]->info.bytes;
        index->first_rows[i + 1] = index->first_rows[i] + segments[i]->rows;
        index->first_blocks[i + 1] = index->first_blocks[i] + segments[i]->blocks;
    }
}

/* Takes an entry out of the table and puts it on the list `gone`. Under table_lock. */
static void take_out(entry *which, entry **gone) {
    entry **at = &table;
    while (*at != which) {
        at = &(*at)->next;
    }
    *at = which->next;
    which->next = *gone;
    *gone = which;
}

/* Takes out the unused entries that were not used for the longest, until few are left. Under table_lock. */
static void evict(entry **gone) {
    for (;;) {
        uint32_t unused = 0;
        entry *oldest = NULL;
        for (entry *at = table; at != NULL; at = at->next) {
            if (at->users == 0) {
                unused++;
                if (oldest == NULL || at->last_used < oldest->last_used) {
                    oldest = at;
                }
            }
        }
        if (unused <= UNUSED_KEPT) {
            return;
        }
        take_out(oldest, gone);
    }
}

/* An unused index of a folder that is no longer there would hold on to disk space for nothing. */
static void drop_orphans(void) {
    entry *gone = NULL;
    pthread_mutex_lock(&table_lock);
    for (entry *at = table, *next; at != NULL; at = next) {
        next = at->next;
        uint64_t device, inode, modified, bytes;
        if (at->users == 0 &&
            (bw_file_identity(at->folder, &device, &inode, &modified, &bytes, NULL) != BW_OK ||
             device != at->folder_device || inode != at->folder_inode)) {
            take_out(at, &gone);
        }
    }
    pthread_mutex_unlock(&table_lock);
    destroy(gone);
}

/* Makes an entry its folder's current one. */
static void put_in(entry *made) {
    entry *gone = NULL;
    pthread_mutex_lock(&table_lock);
    for (entry *at = table, *next; at != NULL; at = next) {
        next = at->next;
        if (at->current && at->folder_device == made->folder_device &&
            at->folder_inode == made->folder_inode) {
            at->current = false;
            if (at->users == 0) {
                take_out(at, &gone);
            }
        }
    }
    made->current = true;
    made->next = table;
    table = made;
    pthread_mutex_unlock(&table_lock);
    destroy(gone);
}

/* The folder's open index if it was made from these very bytes and its files are untouched, held once more;
 * or NULL. */
static entry *find_current(const char *folder, uint64_t device, uint64_t inode, const uint8_t *manifest,
                           size_t bytes) {
    pthread_mutex_lock(&table_lock);
    entry *found = table;
    while (found != NULL &&
           !(found->current && found->folder_device == device && found->folder_inode == inode &&
             found->manifest_bytes == bytes && memcmp(found->manifest, manifest, bytes) == 0)) {
        found = found->next;
    }
    if (found != NULL) {
        found->users++;
    }
    pthread_mutex_unlock(&table_lock);
    for (uint32_t i = 0; found != NULL && i < found->index.info.segments; i++) {
        const bw_segment *segment = found->index.segments[i];
        const bw_deleted *vector = found->vectors[i];
        if (!same_file(folder, segment->info.name, &segment->map) ||
            (vector != NULL && !same_file(folder, vector->name, &vector->map))) {
            bw_index_close(&found->index);
            found = NULL;
        }
    }
    return found;
}

/* Opens what a manifest lists. Takes over *manifest on success. Under opening_lock. */
static int32_t open_listed(const char *folder, uint64_t device, uint64_t inode, uint8_t **manifest,
                           size_t bytes, entry **result, bw_error *error) {
    int32_t code = check_manifest(folder, *manifest, bytes, error);
    if (code != BW_OK) {
        return code;
    }
    const bw_manifest_header *header = manifest_header(*manifest);
    const bw_manifest_entry *entries = manifest_entries(*manifest);
    uint32_t n = header->segments;
    bw_segment **segments;
    bw_error reason;
    code = hold_segments(folder, device, inode, entries, n, &segments, &reason);
    if (code == BW_MISSING) {
        return bw_fail(error, BW_CORRUPT, "index '%s' lists a segment that is gone: %s. " REPAIR, folder,
                       reason.message);
    }
    if (code != BW_OK) {
        return bw_fail(error, code, "%s", reason.message);
    }
    for (uint32_t i = 0; i < n && code == BW_OK; i++) {
        code = check_kin(segments[i], header->uuid, &header->fingerprints, error);
        if (code == BW_OK) {
            code = check_listed(segments[i], &entries[i], error);
        }
    }
    bw_deleted **vectors = NULL;
    if (code == BW_OK) {
        code = open_vectors(folder, entries, n, segments, &vectors, &reason);
        if (code == BW_MISSING) {
            code = bw_fail(error, BW_CORRUPT, "index '%s' lists a deletion vector that is gone: %s. " REPAIR,
                           folder, reason.message);
        } else if (code != BW_OK) {
            code = bw_fail(error, code, "%s", reason.message);
        }
    }
    for (uint32_t i = 0; i < n && code == BW_OK; i++) {
        code = vectors[i] != NULL ? check_listed_vector(vectors[i], &entries[i], error) : BW_OK;
    }
    if (code == BW_OK) {
        code = make_entry(folder, device, inode, manifest, bytes, result, error);
    }
    if (code != BW_OK) {
        close_vectors(vectors, n);
        release_segments(segments, n);
        bw_free(segments);
        return code;
    }
    give_segments(*result, segments, vectors, n);
    put_in(*result);
    return BW_OK;
}

static int32_t folder_identity(const char *folder, uint64_t *device, uint64_t *inode, bw_error *error) {
    uint64_t modified, bytes;
    return bw_file_identity(folder, device, inode, &modified, &bytes, error);
}

int32_t bw_index_open(const char *folder, bw_index **index, bw_error *error) {
    if (folder == NULL || index == NULL) {
        return bw_fail(error, BW_INVALID, "an index needs a folder to be opened from");
    }
    uint8_t *manifest = NULL;
    size_t bytes = 0;
    int32_t code = read_manifest(folder, &manifest, &bytes, error);
    if (code != BW_OK) {
        drop_orphans();
        return code;
    }
    uint64_t device, inode;
    code = folder_identity(folder, &device, &inode, error);
    entry *found = code == BW_OK ? find_current(folder, device, inode, manifest, bytes) : NULL;
    if (code == BW_OK && found == NULL) {
        pthread_mutex_lock(&opening_lock);
        drop_orphans();
        for (;;) {
            /* Another thread may have opened it meanwhile. */
            found = find_current(folder, device, inode, manifest, bytes);
            if (found != NULL) {
                break;
            }
            code = open_listed(folder, device, inode, &manifest, bytes, &found, error);
            if (code == BW_OK || code == BW_NOMEM) {
                break;
            }
            /* A writer may have replaced the manifest, and removed what the old one lists, after it was read.
             */
            uint8_t *newer = NULL;
            size_t newer_bytes = 0;
            if (read_manifest(folder, &newer, &newer_bytes, NULL) != BW_OK) {
                break;
            }
            bool changed = newer_bytes != bytes || memcmp(newer, manifest, bytes) != 0;
            bw_free(manifest);
            manifest = newer;
            bytes = newer_bytes;
            if (!changed) {
                break;
            }
        }
        pthread_mutex_unlock(&opening_lock);
    }
    bw_free(manifest);
    if (found != NULL) {
        *index = &found->index;
        return BW_OK;
    }
    return code;
}

static void free_view(view *gone) {
    for (uint32_t i = 0; gone->bits != NULL && i < gone->index.info.segments; i++) {
        bw_free(gone->bits[i]);
    }
    bw_free(gone->bits);
    bw_free(gone->index.dead);
    bw_free(gone);
}

void bw_index_close(bw_index *index) {
    while (index != NULL && index->view != NULL) { /* what a view was made from may be one */
        view *shut = index->view;
        pthread_mutex_lock(&table_lock);
        bool last = --shut->users == 0;
        pthread_mutex_unlock(&table_lock);
        if (!last) {
            return;
        }
        index = (bw_index *)shut->base;
        free_view(shut);
    }
    if (index == NULL) {
        return;
    }
    entry *which = index->entry, *gone = NULL;
    pthread_mutex_lock(&table_lock);
    which->last_used = ++table_clock;
    if (--which->users == 0) {
        if (!which->current) {
            take_out(which, &gone);
        }
        evict(&gone);
    }
    pthread_mutex_unlock(&table_lock);
    destroy(gone);
}

const bw_index *bw_index_retain(const bw_index *index) {
    pthread_mutex_lock(&table_lock);
    if (index->view != NULL) {
        index->view->users++;
    } else {
        index->entry->users++;
    }
    pthread_mutex_unlock(&table_lock);
    return index;
}

int32_t bw_index_without(const bw_index *index, const int64_t *ids, size_t n, bw_index **without,
                         bw_error *error) {
    if (index == NULL || without == NULL || (n > 0 && ids == NULL)) {
        return bw_fail(error, BW_INVALID, "an index without some ids needs an index and these ids");
    }
    uint32_t segments = index->info.segments;
    view *made = bw_alloc_zero(1, sizeof *made);
    if (made == NULL) {
        return bw_fail_nomem(error, sizeof *made);
    }
    made->index = *index;
    made->index.view = made;
    made->users = 1;
    made->bits = bw_alloc_zero(segments, sizeof *made->bits);
    made->index.dead = bw_alloc_array(segments, sizeof *made->index.dead);
    if (made->bits == NULL || made->index.dead == NULL) {
        free_view(made);
        return bw_fail_nomem(error, segments * (sizeof(bw_dead) + sizeof(void *)));
    }
    memcpy(made->index.dead, index->dead, segments * sizeof *made->index.dead);
    for (size_t i = 0; i < n; i++) {
        uint32_t s, row;
        if (!bw_index_find(&made->index, ids[i], &s, &row)) {
            continue;
        }
        bw_dead *dead = &made->index.dead[s];
        if (made->bits[s] == NULL) {
            size_t bytes = bw_bitmap_bytes(index->segments[s]->rows);
            made->bits[s] = bw_alloc_zero(1, bytes);
            if (made->bits[s] == NULL) {
                free_view(made);
                return bw_fail_nomem(error, bytes);
            }
            if (dead->bits != NULL) {
                memcpy(made->bits[s], dead->bits, bytes);
            }
            dead->bits = made->bits[s];
        }
        made->bits[s][row / 64] |= (uint64_t)1 << row % 64;
        dead->rows++;
        made->index.info.rows--;
        made->index.info.deleted++;
    }
    made->base = bw_index_retain(index);
    *without = &made->index;
    return BW_OK;
}

int32_t bw_deleted_write(const char *folder, const char *name, const char *segment, const int64_t *ids,
                         size_t n, bw_error *error) {
    if (folder == NULL || name == NULL || segment == NULL || ids == NULL || n == 0) {
        return bw_fail(error, BW_INVALID,
                       "a deletion vector needs a folder, a name, its segment's name and at least one id");
    }
    bw_manifest_entry listed = {0};
    if (!bw_name_ok(segment)) {
        return bw_fail(
            error, BW_INVALID,
            "a segment's name is 1 to %d letters, digits, '.', '_' or '-' and does not begin with a dot",
            BW_NAME_BYTES - 1);
    }
    memcpy(listed.name, segment, strlen(segment));
    uint64_t device, inode;
    int32_t code = folder_identity(folder, &device, &inode, error);
    if (code != BW_OK) {
        return code;
    }
    bw_segment **held = NULL;
    pthread_mutex_lock(&opening_lock);
    code = hold_segments(folder, device, inode, &listed, 1, &held, error);
    pthread_mutex_unlock(&opening_lock);
    if (code == BW_OK) {
        code = bw_deleted_save(folder, name, held[0], ids, n, error);
        release_segments(held, 1);
        bw_free(held);
    }
    return code;
}

int32_t bw_manifest_write(const char *folder, const uint8_t *uuid, uint64_t generation,
                          const char *const *names, const char *const *deleted, uint32_t segments,
                          const bw_fingerprints *fingerprints, bw_error *error) {
    if (folder == NULL || uuid == NULL || fingerprints == NULL || (names == NULL && segments > 0)) {
        return bw_fail(error, BW_INVALID, "a manifest needs a folder, a UUID, fingerprints and names");
    }
    if (segments > BW_MAX_SEGMENTS) {
        return bw_fail(error, BW_INVALID, "an index has at most %d segments, not %u; put them together first",
                       BW_MAX_SEGMENTS, segments);
    }
    size_t bytes = bw_manifest_bytes(segments);
    uint8_t *manifest = bw_alloc_zero(1, bytes);
    if (manifest == NULL) {
        return bw_fail_nomem(error, bytes);
    }
    bw_manifest_header *header = (bw_manifest_header *)(void *)manifest;
    bw_manifest_entry *entries = (bw_manifest_entry *)(void *)(manifest + sizeof *header);
    memcpy(header->magic, BW_MANIFEST_MAGIC, sizeof header->magic);
    header->format = BW_MANIFEST_FORMAT;
    header->byte_order = BW_BYTE_ORDER;
    memcpy(header->uuid, uuid, sizeof header->uuid);
    header->generation = generation;
    header->segments = segments;
    int32_t code = BW_OK;
    if (!bw_fingerprints_pad(&header->fingerprints, fingerprints)) {
        code = bw_fail(error, BW_INVALID, "a fingerprint is longer than %d bytes", BW_FINGERPRINT_BYTES - 1);
    }
    for (uint32_t i = 0; i < segments && code == BW_OK; i++) {
        const char *vector = deleted == NULL || deleted[i] == NULL ? "" : deleted[i];
        if (names[i] == NULL || !bw_name_ok(names[i]) || (vector[0] != '\0' && !bw_name_ok(vector))) {
            code =
                bw_fail(error, BW_INVALID,
                        "name %u: a segment's or a deletion vector's name is 1 to %d letters, digits, '.', "
                        "'_' or '-' and does not begin with a dot",
                        i, BW_NAME_BYTES - 1);
        } else {
            memcpy(entries[i].name, names[i], strlen(names[i]));
            memcpy(entries[i].deleted_name, vector, strlen(vector));
        }
    }
    if (code == BW_OK) {
        code = check_names(entries, segments, BW_INVALID, error);
    }
    uint64_t device, inode;
    if (code == BW_OK) {
        code = folder_identity(folder, &device, &inode, error);
    }
    if (code != BW_OK) {
        bw_free(manifest);
        return code;
    }
    bw_segment **held = NULL;
    bw_deleted **vectors = NULL;
    entry *made = NULL;
    bw_writer *writer = NULL;
    pthread_mutex_lock(&opening_lock);
    code = hold_segments(folder, device, inode, entries, segments, &held, error);
    if (code == BW_OK) {
        for (uint32_t i = 0; i < segments && code == BW_OK; i++) {
            code = check_kin(held[i], uuid, &header->fingerprints, error);
            entries[i].rows = held[i]->info.rows;
            entries[i].bytes = held[i]->info.bytes;
            entries[i].generation = held[i]->info.generation;
            entries[i].checksum = held[i]->header_checksum;
        }
        if (code == BW_OK) {
            code = open_vectors(folder, entries, segments, held, &vectors, error);
        }
        for (uint32_t i = 0; i < segments && code == BW_OK; i++) {
            entries[i].deleted = vectors[i] != NULL ? vectors[i]->dead.rows : 0;
            entries[i].deleted_checksum = vectors[i] != NULL ? vectors[i]->checksum : 0;
        }
        uint32_t checksum = bw_crc32c(0, manifest, bytes - sizeof checksum);
        memcpy(manifest + bytes - sizeof checksum, &checksum, sizeof checksum);
        /* All that can fail for want of memory comes before the new manifest takes effect. */
        if (code == BW_OK) {
            code = make_entry(folder, device, inode, &manifest, bytes, &made, error);
        }
        if (code == BW_OK) {
            code = bw_writer_open(folder, BW_MANIFEST_NAME, &writer, error);
        }
        if (code == BW_OK) {
            code = bw_writer_write(writer, made->manifest, bytes, error);
            if (code == BW_OK) {
                code = bw_writer_commit(writer, error);
            } else {
                bw_writer_abandon(writer);
            }
        }
        if (code == BW_OK) {
            /* The segments have just been checked: whoever opens the index next gets them. */
            give_segments(made, held, vectors, segments);
            put_in(made);
            bw_index_close(&made->index);
        } else {
            destroy(made);
            close_vectors(vectors, segments);
            release_segments(held, segments);
            bw_free(held);
        }
    }
    pthread_mutex_unlock(&opening_lock);
    bw_free(manifest);
    return code;
}

/* ---- reading ---- */

int32_t bw_index_describe(const bw_index *index, bw_index_info *info) {
    *info = index->info;
    return BW_OK;
}

int32_t bw_index_segment(const bw_index *index, uint32_t segment, bw_segment_info *info, bw_error *error) {
    if (segment >= index->info.segments) {
        return bw_fail(error, BW_INVALID, "segment %u of an index that has %u", segment,
                       index->info.segments);
    }
    *info = index->segments[segment]->info;
    info->deleted = index->dead[segment].rows;
    const bw_deleted *vector = index->entry != NULL ? index->entry->vectors[segment] : NULL;
    if (vector != NULL && vector->dead.bits == index->dead[segment].bits) { /* not a view's own */
        memcpy(info->deletions, vector->name, sizeof info->deletions);
    }
    return BW_OK;
}

bool bw_index_find(const bw_index *index, int64_t id, uint32_t *segment, uint32_t *row) {
    for (uint32_t i = 0; i < index->info.segments; i++) {
        uint32_t at;
        if (bw_segment_find(index->segments[i], id, &at) && !bw_is_dead(&index->dead[i], at)) {
            *segment = i;
            *row = at;
            return true;
        }
    }
    return false;
}

void bw_index_gather(const bw_index *index, uint32_t segment, uint32_t row, uint8_t code[BW_DIMS]) {
    const uint8_t *columns = bw_segment_block(index->segments[segment], row / BW_BLOCK_ROWS);
    for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
        code[dim] = columns[dim * BW_BLOCK_ROWS + row % BW_BLOCK_ROWS];
    }
}

static int32_t no_fine(bw_error *error) {
    return bw_fail(error, BW_INVALID,
                   "the index has no fine codes: they are kept where a collection is made of embeddings");
}

/* Of each id either the code or the fine code, whichever is not NULL. */
static int32_t read_by_id(const bw_index *index, const int64_t *ids, size_t n, uint8_t *codes, uint8_t *fine,
                          uint8_t *found, bw_error *error) {
    typedef struct place {
        uint32_t segment, row;
    } place;
    if (n > 0 && (ids == NULL || (codes == NULL && fine == NULL))) {
        return bw_fail(error, BW_INVALID, "codes by id need ids and room for the codes");
    }
    place *places = bw_alloc_array(n, sizeof *places);
    if (places == NULL) {
        return bw_fail_nomem(error, n * sizeof *places);
    }
    for (size_t i = 0; i < n; i++) {
        if (!bw_index_find(index, ids[i], &places[i].segment, &places[i].row)) {
            places[i].segment = UINT32_MAX;
            if (found == NULL) {
                bw_free(places);
                return bw_fail(error, BW_MISSING, "id %lld is not in the index%s", (long long)ids[i],
                               index->info.rows == 0 ? ", which is empty" : "");
            }
        }
    }
    for (size_t i = 0; i < n; i++) {
        bool present = places[i].segment != UINT32_MAX;
        if (present && codes != NULL) {
            bw_index_gather(index, places[i].segment, places[i].row, codes + i * BW_DIMS);
        } else if (present) {
            memcpy(fine + i * BW_FINE_DIMS,
                   index->segments[places[i].segment]->fine + (size_t)places[i].row * BW_FINE_DIMS,
                   BW_FINE_DIMS);
        } else if (codes != NULL) {
            memset(codes + i * BW_DIMS, 0, BW_DIMS);
        } else {
            memset(fine + i * BW_FINE_DIMS, 0, BW_FINE_DIMS);
        }
        if (found != NULL) {
            found[i] = present;
        }
    }
    bw_free(places);
    return BW_OK;
}

int32_t bw_index_codes(const bw_index *index, const int64_t *ids, size_t n, uint8_t *codes, uint8_t *found,
                       bw_error *error) {
    return read_by_id(index, ids, n, codes, NULL, found, error);
}

int32_t bw_index_fine(const bw_index *index, const int64_t *ids, size_t n, uint8_t *fine, uint8_t *found,
                      bw_error *error) {
    return index->info.fingerprints.fine[0] == '\0' ? no_fine(error)
                                                    : read_by_id(index, ids, n, NULL, fine, found, error);
}

int32_t bw_index_rows(const bw_index *index, uint64_t first, uint64_t n, int64_t *ids, uint8_t *codes,
                      uint8_t *fine, bw_error *error) {
    uint64_t rows = index->first_rows[index->info.segments];
    if (first > rows || n > rows - first) {
        return bw_fail(error, BW_INVALID, "rows %llu to %llu of an index that has %llu",
                       (unsigned long long)first, (unsigned long long)first + (unsigned long long)n,
                       (unsigned long long)rows);
    }
    if (n > 0 && ids == NULL) {
        return bw_fail(error, BW_INVALID, "reading rows needs room for their ids");
    }
    if (fine != NULL && index->info.fingerprints.fine[0] == '\0') {
        return no_fine(error);
    }
    uint32_t number = 0;
    while (n > 0) {
        while (index->first_rows[number + 1] <= first) {
            number++;
        }
        const bw_segment *segment = index->segments[number];
        uint64_t row = first - index->first_rows[number];
        uint32_t block = (uint32_t)(row / BW_BLOCK_ROWS), from = row % BW_BLOCK_ROWS;
        uint32_t part = bw_segment_block_rows(segment, block) - from;
        part = n < part ? (uint32_t)n : part;
        memcpy(ids, segment->ids + row, part * sizeof *ids);
        for (uint32_t i = 0; index->dead[number].bits != NULL && i < part; i++) {
            ids[i] = bw_is_dead(&index->dead[number], row + i) ? -1 : ids[i];
        }
        ids += part;
        if (codes != NULL) {
            const uint8_t *columns = bw_segment_block(segment, block) + from;
            for (uint32_t dim = 0; dim < BW_DIMS; dim++) {
                for (uint32_t i = 0; i < part; i++) {
                    codes[(size_t)i * BW_DIMS + dim] = columns[dim * BW_BLOCK_ROWS + i];
                }
            }
            codes += (size_t)part * BW_DIMS;
        }
        if (fine != NULL) {
            memcpy(fine, segment->fine + row * BW_FINE_DIMS, (size_t)part * BW_FINE_DIMS);
            fine += (size_t)part * BW_FINE_DIMS;
        }
        first += part;
        n -= part;
    }
    return BW_OK;
}

/* ---- the deep check ---- */

typedef struct cursor {
    int64_t id;
    uint32_t segment, rank;
} cursor;

/* Restores the heap (smallest id first) below place `at`. */
static void sift_down(cursor *heap, uint32_t n, uint32_t at) {
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child + 1 < n && heap[child + 1].id < heap[child].id) {
            child++;
        }
        if (child >= n || heap[at].id <= heap[child].id) {
            return;
        }
        cursor moved = heap[at];
        heap[at] = heap[child];
        heap[child] = moved;
        at = child;
    }
}

/* Moves a cursor to the first rank from its own on whose row is alive; false where there is none. */
static bool find_live(const bw_index *index, cursor *at) {
    const bw_segment *segment = index->segments[at->segment];
    for (; at->rank < segment->rows; at->rank++) {
        uint32_t row = segment->id_rows[at->rank];
        if (!bw_is_dead(&index->dead[at->segment], row)) {
            at->id = segment->ids[row];
            return true;
        }
    }
    return false;
}

/* Walks through the ids of all segments at once, in ascending order. */
static int32_t check_unique(const bw_index *index, bw_error *error) {
    uint32_t n = index->info.segments;
    if (n < 2) {
        return BW_OK;
    }
    cursor *heap = bw_alloc_array(n, sizeof *heap);
    if (heap == NULL) {
        return bw_fail_nomem(error, n * sizeof *heap);
    }
    n = 0;
    for (uint32_t i = 0; i < index->info.segments; i++) {
        heap[n] = (cursor){.segment = i};
        n += find_live(index, &heap[n]);
    }
    for (uint32_t at = n / 2; at-- > 0;) {
        sift_down(heap, n, at);
    }
    int32_t code = BW_OK;
    cursor last = {.id = -1};
    while (n > 0) {
        if (heap[0].id == last.id) {
            code = bw_fail(error, BW_CORRUPT, "id %lld stands in segment %s and in segment %s. " REPAIR,
                           (long long)last.id, index->segments[last.segment]->info.name,
                           index->segments[heap[0].segment]->info.name);
            break;
        }
        last = heap[0];
        heap[0].rank++;
        if (!find_live(index, &heap[0])) {
            heap[0] = heap[--n];
        }
        sift_down(heap, n, 0);
    }
    bw_free(heap);
    return code;
}

int32_t bw_index_validate(const bw_index *index, bw_error *error) {
    for (uint32_t i = 0; i < index->info.segments; i++) {
        int32_t code = bw_segment_validate(index->segments[i], error);
        if (code != BW_OK) {
            return code;
        }
        const bw_deleted *vector = index->entry != NULL ? index->entry->vectors[i] : NULL;
        code = vector != NULL ? bw_deleted_check(vector->name, &vector->map, error) : BW_OK;
        if (code != BW_OK) {
            return code;
        }
    }
    return check_unique(index, error);
}

/* ---- drawing by rank ---- */

/* Ranks are those of live rows in the ascending order of their ids; a `place` is a row's rank in its segment,
 * dead rows counted. */
typedef struct drawing {
    const bw_index *index;
    uint32_t **dead; /* [segments]: the places of dead rows, ascending; */
    uint32_t *n_dead;
    uint64_t rows; /* that are alive */
} drawing;

/* Places [first, last) of a segment. */
typedef struct part {
    uint32_t segment, first, last;
} part;

static int compare_places(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Where a segment's dead rows stand in the order of ids, each place once: by looking each of them up where
 * they are few, by looking through all rows where they are many. `places` has room for all dead rows. */
static uint32_t find_dead(const bw_segment *segment, const bw_dead *dead, uint32_t *places) {
    uint32_t rows = (uint32_t)segment->rows, n = 0, kept = 0;
    if (dead->rows > segment->rows / FEW_DEAD) {
        for (uint32_t place = 0; place < rows && n < dead->rows; place++) {
            places[n] = place;
            n += bw_is_dead(dead, segment->id_rows[place]);
        }
        return n;
    }
    for (uint32_t first = 0; first < rows; first += 64) {
        for (uint64_t left = dead->bits[first / 64]; left; left &= left - 1) {
            int64_t id = segment->ids[first + (uint32_t)__builtin_ctzll(left)];
            places[n++] = bw_segment_rank(segment, 0, rows - 1, id);
        }
    }
    qsort(places, n, sizeof *places, compare_places);
    for (uint32_t i = 0; i < n; i++) {
        if (kept == 0 || places[kept - 1] != places[i]) {
            places[kept++] = places[i];
        }
    }
    return kept;
}

static void end_drawing(drawing *d) {
    for (uint32_t s = 0; d->dead != NULL && s < d->index->info.segments; s++) {
        bw_free(d->dead[s]);
    }
    bw_free(d->dead);
    bw_free(d->n_dead);
}

static int32_t begin_drawing(const bw_index *index, drawing *d, bw_error *error) {
    uint32_t segments = index->info.segments;
    *d = (drawing){.index = index};
    d->dead = bw_alloc_zero(segments, sizeof *d->dead);
    d->n_dead = bw_alloc_zero(segments, sizeof *d->n_dead);
    bool enough = d->dead != NULL && d->n_dead != NULL;
    for (uint32_t s = 0; s < segments && enough; s++) {
        const bw_dead *dead = &index->dead[s];
        if (dead->bits != NULL) {
            d->dead[s] = bw_alloc_array(dead->rows + 1, sizeof **d->dead);
            enough = d->dead[s] != NULL;
            d->n_dead[s] = enough ? find_dead(index->segments[s], dead, d->dead[s]) : 0;
        }
        d->rows += index->segments[s]->rows - d->n_dead[s];
    }
    if (!enough) {
        end_drawing(d);
        return bw_fail_nomem(error, (index->info.deleted + segments) * sizeof **d->dead);
    }
    return BW_OK;
}

/* Dead rows of a segment before a place. */
static uint32_t dead_before(const drawing *d, uint32_t segment, uint32_t place) {
    const uint32_t *dead = d->dead[segment];
    uint32_t low = 0, high = d->n_dead[segment];
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (dead[middle] < place) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static uint64_t live_rows(const drawing *d, part p) {
    return p.last - p.first -
           (uint64_t)(dead_before(d, p.segment, p.last) - dead_before(d, p.segment, p.first));
}

/* The place of live row number n, from 0, of those from place `first` on. */
static uint32_t live_place(const drawing *d, uint32_t segment, uint32_t first, uint64_t n) {
    const uint32_t *dead = d->dead[segment];
    uint32_t skipped = dead_before(d, segment, first), low = skipped, high = d->n_dead[segment];
    while (low < high) { /* the first dead row that more than n live ones come before */
        uint32_t middle = low + (high - low) / 2;
        if (dead[middle] - first - (middle - skipped) <= n) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return first + (uint32_t)n + (low - skipped);
}

/* The first of ranks[0 .. n) that is not below `rank`. */
static size_t ranks_below(const uint64_t *ranks, size_t n, uint64_t rank) {
    size_t first = 0;
    while (n > 0) {
        size_t half = n / 2;
        if (ranks[first + half] < rank) {
            first += half + 1;
            n -= half + 1;
        } else {
            n = half;
        }
    }
    return first;
}

/* The ids that stand at `ranks` (ascending) in the ascending order of the live ids of all parts; `before` ids
 * come before them all. Quickselect on sorted runs: the middle id of the largest part splits every part in
 * two. The side with fewer live rows is done by recursion, at most log2(rows) deep, each level with n_parts
 * entries of `room`; the other one by iteration. */
static void select_ids(const drawing *d, part *parts, uint32_t n_parts, part *room, uint64_t before,
                       const uint64_t *ranks, size_t n, int64_t *ids) {
    while (n > 0) {
        uint32_t largest = 0;
        for (uint32_t i = 1; i < n_parts; i++) {
            if (parts[i].last - parts[i].first > parts[largest].last - parts[largest].first) {
                largest = i;
            }
        }
        const bw_segment *of = d->index->segments[parts[largest].segment];
        if (n_parts == 1) {
            for (size_t i = 0; i < n; i++) {
                ids[i] =
                    bw_segment_id(of, live_place(d, parts[0].segment, parts[0].first, ranks[i] - before));
            }
            return;
        }
        uint32_t middle = parts[largest].first + (parts[largest].last - parts[largest].first) / 2;
        int64_t pivot = bw_segment_id(of, middle);
        uint64_t below = 0, equal = 0, above = 0;
        uint32_t n_low = 0, n_high = 0;
        part *low = room, *high = parts;
        for (uint32_t i = 0; i < n_parts; i++) {
            part whole = parts[i];
            const bw_segment *segment = d->index->segments[whole.segment];
            /* Ids are unique in a segment; taking the pivot's own place makes sure of progress whatever the
             * file says. */
            uint32_t start = i == largest ? middle : bw_segment_rank(segment, whole.first, whole.last, pivot);
            uint32_t end =
                start + (i == largest || (start < whole.last && bw_segment_id(segment, start) == pivot));
            part less = {whole.segment, whole.first, start}, more = {whole.segment, end, whole.last};
            below += live_rows(d, less);
            equal += live_rows(d, (part){whole.segment, start, end});
            above += live_rows(d, more);
            if (start > whole.first) {
                low[n_low++] = less;
            }
            if (whole.last > end) {
                high[n_high++] = more;
            }
        }
        size_t low_ranks = ranks_below(ranks, n, before + below);
        size_t not_above = ranks_below(ranks, n, before + below + equal);
        for (size_t i = low_ranks; i < not_above; i++) {
            ids[i] = pivot;
        }
        uint64_t before_high = before + below + equal;
        if (below <= above) {
            select_ids(d, low, n_low, room + n_low, before, ranks, low_ranks, ids);
            n_parts = n_high;
            before = before_high;
            ranks += not_above;
            ids += not_above;
            n -= not_above;
        } else {
            select_ids(d, high, n_high, room + n_low, before_high, ranks + not_above, n - not_above,
                       ids + not_above);
            memcpy(parts, low, n_low * sizeof *parts);
            n_parts = n_low;
            n = low_ranks;
        }
    }
}

static int compare_ranks(const void *a, const void *b) {
    uint64_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

/* n distinct numbers below `bound`, ascending: algorithm F2 of Bentley and Floyd, "A sample of brilliance"
 * (1987). `set` is a hash table of `slots` (a power of two > n) zeros. */
static void draw_ranks(uint64_t seed, uint64_t bound, size_t n, uint64_t *set, size_t slots,
                       uint64_t *ranks) {
    bw_random random = {seed};
    for (size_t i = 0; i < n; i++) {
        uint64_t top = bound - n + i;
        uint64_t candidate = bw_random_below(&random, top + 1);
        for (;;) {
            bw_random hash = {candidate};
            size_t slot = bw_random_next(&hash) & (slots - 1);
            while (set[slot] != 0 && set[slot] != candidate + 1) {
                slot = (slot + 1) & (slots - 1);
            }
            if (set[slot] == 0) {
                set[slot] = candidate + 1;
                break;
            }
            candidate = top; /* never drawn before: all earlier ones are smaller */
        }
        ranks[i] = candidate;
    }
    qsort(ranks, n, sizeof *ranks, compare_ranks);
}

/* Ranks of the excluded ids that are alive, each once. Returns their number. */
static size_t rank_excluded(const drawing *d, const int64_t *exclude, size_t excluded, uint64_t *ranks) {
    size_t present = 0;
    for (size_t i = 0; i < excluded; i++) {
        uint32_t segment, row;
        if ((i > 0 && exclude[i] == exclude[i - 1]) || !bw_index_find(d->index, exclude[i], &segment, &row)) {
            continue;
        }
        uint64_t rank = 0;
        for (uint32_t s = 0; s < d->index->info.segments; s++) {
            const bw_segment *in = d->index->segments[s];
            uint32_t rows = (uint32_t)in->rows;
            uint32_t place = exclude[i] <= in->info.min_id  ? 0
                             : exclude[i] > in->info.max_id ? rows
                                                            : bw_segment_rank(in, 0, rows, exclude[i]);
            rank += live_rows(d, (part){s, 0, place});
        }
        ranks[present++] = rank;
    }
    return present;
}

int32_t bw_index_draw(const bw_index *index, uint64_t seed, size_t n, const int64_t *exclude, size_t excluded,
                      int64_t *ids, size_t *drawn, bw_error *error) {
    if ((excluded > 0 && exclude == NULL) || (n > 0 && ids == NULL)) {
        return bw_fail(error, BW_INVALID,
                       "drawing ids needs room for them, and the excluded ids when there are any");
    }
    for (size_t i = 1; i < excluded; i++) {
        if (exclude[i - 1] > exclude[i]) {
            return bw_fail(error, BW_INVALID, "the excluded ids are not sorted: %lld stands before %lld",
                           (long long)exclude[i - 1], (long long)exclude[i]);
        }
    }
    drawing d;
    int32_t code = begin_drawing(index, &d, error);
    if (code != BW_OK) {
        return code;
    }
    if (n > d.rows) {
        n = d.rows;
    }
    uint32_t segments = index->info.segments, levels = 1;
    while (d.rows >> levels != 0) {
        levels++;
    }
    size_t slots = 2;
    while (slots / 2 < n) {
        slots *= 2;
    }
    uint64_t *except = bw_alloc_array(excluded, sizeof *except);
    uint64_t *ranks = bw_alloc_array(n, sizeof *ranks);
    uint64_t *set = bw_alloc_zero(slots, sizeof *set);
    part *room = bw_alloc_array((size_t)segments * (levels + 2), sizeof *room);
    if (except == NULL || ranks == NULL || set == NULL || room == NULL) {
        bw_free(except);
        bw_free(ranks);
        bw_free(set);
        bw_free(room);
        end_drawing(&d);
        return bw_fail_nomem(error, (excluded + n + slots) * sizeof *ranks);
    }
    size_t present = rank_excluded(&d, exclude, excluded, except);
    uint64_t left = d.rows - present;
    if (n > left) {
        n = left;
    }
    draw_ranks(seed, left, n, set, slots, ranks);
    /* Ranks among what is left become ranks among all. */
    for (size_t i = 0, skipped = 0; i < n; i++) {
        while (skipped < present && except[skipped] <= ranks[i] + skipped) {
            skipped++;
        }
        ranks[i] += skipped;
    }
    for (uint32_t i = 0; i < segments; i++) {
        room[i] = (part){i, 0, (uint32_t)index->segments[i]->rows};
    }
    select_ids(&d, room, segments, room + segments, 0, ranks, n, ids);
    *drawn = n;
    end_drawing(&d);
    bw_free(except);
    bw_free(ranks);
    bw_free(set);
    bw_free(room);
    return BW_OK;
}
