<?php
// The files in the list. A file is known by its number; the name that the person typed is text in a row
// and never part of a path.
declare(strict_types=1);

const FILE_COLUMNS = 'id, stored_name, name, size, owner, stored, alone_reason, created_at';

function uploads_dir(): string
{
    return rtrim(config_text('files.uploads_dir'), '/');
}

function stored_path(string $stored_name): string
{
    if (preg_match('/\A[0-9a-f]{32}\.bin\z/', $stored_name) !== 1) {
        throw new RuntimeException('not a stored name');
    }
    return uploads_dir() . "/$stored_name";
}

function find_file(?int $id): array
{
    $row = $id === null ? null : query_row(database(), 'SELECT ' . FILE_COLUMNS . ' FROM files WHERE id = ?', [$id]);
    return $row ?? throw new Refusal(404, 'not-found', 'There is no such file.');
}

/** Whether this node has the whole file. */
function file_is_here(array $row): bool
{
    $path = stored_path($row['stored_name']);
    clearstatcache(true, $path);
    return is_file($path) && filesize($path) === (int) $row['size'];
}

function file_for_json(array $row): array
{
    return [
        'id' => (int) $row['id'],
        'name' => $row['name'],
        'stored_name' => $row['stored_name'],
        'size' => (int) $row['size'],
        'owner' => $row['owner'],
        'stored' => $row['stored'],
        'alone_reason' => $row['alone_reason'],
        'created_at' => utc_text($row['created_at']),
        'file_is_here' => file_is_here($row),
    ];
}

function name_type(string $name): string
{
    $dot = strrpos($name, '.');
    return $dot === false ? '' : strtolower(substr($name, $dot + 1));
}

/** Refuses names that cannot be kept and types that are not wanted. Slashes and dots are mere text here. */
function check_name(string $name): void
{
    if (trim($name) === '' || strlen($name) > 255) {
        throw new Refusal(422, 'name', 'A name has 1 to 255 bytes and is more than spaces.');
    }
    if (preg_match('//u', $name) !== 1) {
        throw new Refusal(422, 'name', 'The name is not valid UTF-8.');
    }
    if (preg_match('/[\p{Cc}\p{Zl}\p{Zp}]/u', $name) === 1) {
        throw new Refusal(422, 'name', 'The name holds control characters or a line break.');
    }
    $allowed = config_list('files.allowed_types');
    if ($allowed !== ['*'] && !in_array(name_type($name), array_map('strtolower', $allowed), true)) {
        throw new Refusal(415, 'type', 'Files of this type are not accepted. These are: ' . implode(', ', $allowed) . '.');
    }
}

/** Changes the row; the file stays where it is. */
function rename_file(?int $id, string $name): void
{
    $row = find_file($id);
    check_name($name);
    change_database(function (mysqli $db) use ($row, $name) {
        // Locked and not merely updated: an update to the same name reports no row, like a missing one.
        if (query_row($db, 'SELECT id FROM files WHERE id = ? FOR UPDATE', [$row['id']]) === null) {
            throw new Refusal(404, 'not-found', 'There is no such file.');
        }
        query($db, 'UPDATE files SET name = ? WHERE id = ?', [$name, $row['id']]);
    });
}

/** The row first, then the file: a crash between leaves a file that ha-app-tidy finds, never a row without a file. */
function delete_file(?int $id): void
{
    $row = find_file($id);
    change_database(function (mysqli $db) use ($row) {
        query($db, 'DELETE FROM files WHERE id = ?', [$row['id']]);
        if ($db->affected_rows !== 1) {
            throw new Refusal(404, 'not-found', 'There is no such file.');
        }
    });
    $path = stored_path($row['stored_name']);
    if (!@unlink($path) && file_exists($path)) {
        error_log("ha-app: cannot remove $path; ha-app-tidy will");
    }
}

/** Content-Disposition for any name: plain ASCII for old clients, RFC 5987 for the rest. */
function disposition(string $name): string
{
    // A browser must not take a part of the name for a directory.
    $name = strtr($name, ['/' => '_', '\\' => '_']);
    $plain = preg_replace('/[^A-Za-z0-9 ._-]/', '_', $name);
    return "attachment; filename=\"$plain\"; filename*=UTF-8''" . rawurlencode($name);
}

function send_file(?int $id): void
{
    $row = find_file($id);
    $file = file_is_here($row) ? @fopen(stored_path($row['stored_name']), 'rb') : false;
    if ($file === false) {
        throw new Refusal(404, 'missing-file', 'The list knows this file, but this node does not have it whole.');
    }
    while (ob_get_level() > 0) {
        ob_end_clean();
    }
    header('Content-Type: application/octet-stream');
    header('Content-Disposition: ' . disposition($row['name']));
    header('Content-Length: ' . fstat($file)['size']);
    // From here a person who goes away ends it; nothing is changed.
    ignore_user_abort(false);
    if (request_method() !== 'HEAD') {
        fpassthru($file);
    }
    fclose($file);
}
