<?php
// Storing what was uploaded. The order matters: temporary name, fsync, rename, wait for the standby, row,
// COMMIT, answer. What fails before COMMIT is undone.
declare(strict_types=1);

/** The files of the form's field `files`, one or several: [['name', 'tmp', 'error', 'size'], …]. */
function received_files(): array
{
    require_all_files();
    $field = $_FILES['files'] ?? null;
    if ($field === null) {
        throw new Refusal(422, 'fields', 'Choose at least one file.');
    }
    $files = [];
    foreach ((array) $field['error'] as $key => $error) {
        // full_path is the name as it was sent; `name` lacks all up to the last slash or backslash.
        $name = ((array) ($field['full_path'] ?? $field['name']))[$key] ?? '';
        if (!is_int($error) || !is_string($name)) {
            throw new Refusal(422, 'fields', 'The form is not one of this page.');
        }
        if ($error !== UPLOAD_ERR_NO_FILE) {
            $files[] = ['name' => $name, 'tmp' => ((array) $field['tmp_name'])[$key], 'error' => $error, 'size' => ((array) $field['size'])[$key]];
        }
    }
    if ($files === []) {
        throw new Refusal(422, 'fields', 'Choose at least one file.');
    }
    return $files;
}

/** PHP drops files above max_file_uploads and tells only by a warning. None is stored then, so nobody is misled. */
function require_all_files(): void
{
    if (str_contains(error_get_last()['message'] ?? '', 'allowable file uploads')) {
        throw new Refusal(413, 'too-many', 'One request may hold ' . ini_get('max_file_uploads') . ' files at most. None was stored.');
    }
}

/** Stores each file for itself; returns one outcome for each. */
function store_uploads(array $files, string $owner): array
{
    $outcomes = [];
    foreach ($files as $file) {
        try {
            $outcomes[] = ['name' => $file['name'], 'ok' => true] + store_upload($file, $owner);
        } catch (Throwable $failure) {
            $refusal = refusal_of($failure);
            $outcomes[] = ['name' => $file['name'], 'ok' => false, 'error' => $refusal->getMessage(), 'code' => $refusal->short, 'status' => $refusal->status];
        }
    }
    return $outcomes;
}

function store_upload(array $file, string $owner): array
{
    // Asked for each file: in a long batch the roles may have changed.
    require_may_write();
    check_upload($file);
    $stored_name = bin2hex(random_bytes(16)) . '.bin';
    $path = stored_path($stored_name);
    put_in_place($file['tmp'], $path);
    try {
        [$stored, $reason] = wait_for_standby($path);
        $id = insert_file($stored_name, $file, $owner, $stored, $reason);
    } catch (Throwable $failure) {
        undo_upload($failure, $stored_name);
        throw $failure;
    }
    return ['id' => $id, 'stored_name' => $stored_name, 'size' => $file['size'], 'stored' => $stored, 'reason' => $reason];
}

function check_upload(array $file): void
{
    $limit = config_number('files.max_bytes');
    if (in_array($file['error'], [UPLOAD_ERR_INI_SIZE, UPLOAD_ERR_FORM_SIZE], true) || $file['size'] > $limit) {
        throw new Refusal(413, 'too-large', 'The file is too large: ' . size_text($limit) . ' at most.');
    }
    if ($file['error'] === UPLOAD_ERR_PARTIAL) {
        throw new Refusal(400, 'partial', 'The file did not arrive whole.');
    }
    if ($file['error'] !== UPLOAD_ERR_OK) {
        throw storage_failure('PHP reports upload error ' . $file['error']);
    }
    check_name($file['name']);
}

function storage_failure(string $detail): Refusal
{
    error_log("ha-app: $detail");
    return new Refusal(507, 'storage', 'This node could not store the file. It was not kept.');
}

/** Moves the file to its place, on the disk and whole. Leaves nothing behind when that fails. */
function put_in_place(string $received, string $path): void
{
    $incoming = uploads_dir() . '/.incoming-' . bin2hex(random_bytes(16));
    try {
        if (!@move_uploaded_file($received, $incoming)) {
            throw storage_failure("cannot write $incoming");
        }
        // Readable for the synchronisation's and the server's group, executable for nobody.
        @chmod($incoming, 0640);
        flush_to_disk($incoming);
        // PHP cannot open a directory, so the new name itself is not flushed. The standby's copy is, and
        // a row whose file is gone is shown as such.
        if (!@rename($incoming, $path)) {
            throw storage_failure("cannot rename $incoming");
        }
    } catch (Throwable $failure) {
        @unlink($incoming);
        throw $failure;
    }
}

function flush_to_disk(string $path): void
{
    $file = @fopen($path, 'r+b');
    $flushed = $file !== false && fsync($file);
    if ($file !== false) {
        fclose($file);
    }
    if (!$flushed) {
        throw storage_failure("cannot flush $path");
    }
}

function insert_file(string $stored_name, array $file, string $owner, string $stored, ?string $reason): int
{
    return change_database(function (mysqli $db) use ($stored_name, $file, $owner, $stored, $reason) {
        query(
            $db,
            'INSERT INTO files (stored_name, name, size, owner, stored, alone_reason, created_at)
             VALUES (?, ?, ?, ?, ?, ?, UTC_TIMESTAMP(6))',
            [$stored_name, $file['name'], $file['size'], $owner, $stored, $reason],
        );
        return (int) $db->insert_id;
    });
}

/** Removes the file, unless a row for it was committed or may have been. */
function undo_upload(Throwable $failure, string $stored_name): void
{
    $unknown = $failure instanceof Refusal && $failure->short === 'unknown';
    if ($unknown && !row_is_certainly_absent($stored_name)) {
        error_log("ha-app: $stored_name is kept: whether its row was committed is not known");
        return;
    }
    @unlink(stored_path($stored_name));
}

/** A fresh look. It asks for the row's lock, and so waits for a COMMIT that is still under way. */
function row_is_certainly_absent(string $stored_name): bool
{
    try {
        $db = open_database(1, 4);
        command($db, 'START TRANSACTION');
        return query_row($db, 'SELECT id FROM files WHERE stored_name = ? LOCK IN SHARE MODE', [$stored_name]) === null;
    } catch (mysqli_sql_exception) {
        return false;
    }
}

/** One status for a batch: 200 when all are stored, the first refusal's when none is, else 207. */
function batch_status(array $outcomes): int
{
    $failed = array_values(array_filter($outcomes, fn ($outcome) => !$outcome['ok']));
    if ($failed === []) {
        return 200;
    }
    return count($failed) === count($outcomes) ? $failed[0]['status'] : 207;
}

function send_batch_json(array $outcomes): never
{
    $status = batch_status($outcomes);
    $answer = ['ok' => $status === 200, 'files' => $outcomes];
    if ($status !== 200) {
        $first = array_values(array_filter($outcomes, fn ($outcome) => !$outcome['ok']))[0];
        $answer += ['error' => $first['error'], 'code' => $first['code']];
        if (in_array(503, array_column($outcomes, 'status'), true)) {
            header('Retry-After: 2');
        }
    }
    send_json($status, $answer);
}
