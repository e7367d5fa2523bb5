<?php
// Answers: JSON for programs, pages for people, and what happens when something is refused.
declare(strict_types=1);

/** A request that is refused: an HTTP status, a short code for programs, a sentence for people. */
final class Refusal extends RuntimeException
{
    public function __construct(
        public readonly int $status,
        public readonly string $short,
        string $sentence,
        public readonly ?int $retry_after = null,
    ) {
        parent::__construct($sentence);
    }
}

/** Refused now, worth another attempt soon: the roles may be changing. */
function unavailable(string $short, string $sentence): Refusal
{
    return new Refusal(503, $short, $sentence, 2);
}

function wants_json(): bool
{
    return str_contains($_SERVER['HTTP_ACCEPT'] ?? '', 'application/json');
}

function request_method(): string
{
    return $_SERVER['REQUEST_METHOD'] ?? 'GET';
}

/** Refuses any other method. GET includes HEAD. */
function require_method(string ...$allowed): void
{
    $method = request_method() === 'HEAD' ? 'GET' : request_method();
    if (!in_array($method, $allowed, true)) {
        header('Allow: ' . implode(', ', $allowed));
        throw new Refusal(405, 'method', 'This address does not take requests of that kind.');
    }
}

/** A field of the form, or null. A list where a text belongs counts as absent. */
function posted(string $field): ?string
{
    $value = $_POST[$field] ?? null;
    return is_string($value) ? $value : null;
}

/** A positive whole number from the address or the form, or null. */
function positive(mixed $value): ?int
{
    $number = is_string($value) ? filter_var($value, FILTER_VALIDATE_INT, ['options' => ['min_range' => 1]]) : false;
    return $number === false ? null : $number;
}

/** PHP drops the whole body when it is larger than post_max_size; the form then looks empty. */
function require_whole_body(): void
{
    $length = (int) ($_SERVER['CONTENT_LENGTH'] ?? 0);
    $limit = ini_parse_quantity(ini_get('post_max_size') ?: '0');
    if ($limit > 0 && $length > $limit && $_POST === [] && $_FILES === []) {
        throw new Refusal(413, 'too-large', 'That is too large: one request may hold ' . size_text($limit) . ' at most.');
    }
}

function send_headers(): void
{
    header_remove('X-Powered-By');
    header("Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'");
    header('X-Content-Type-Options: nosniff');
    header('X-Frame-Options: DENY');
    header('Referrer-Policy: same-origin');
    header('Cache-Control: no-store');
}

function send_json(int $status, array $data): never
{
    http_response_code($status);
    header('Content-Type: application/json');
    echo json_encode($data, JSON_INVALID_UTF8_SUBSTITUTE | JSON_UNESCAPED_SLASHES | JSON_UNESCAPED_UNICODE | JSON_THROW_ON_ERROR), "\n";
    exit;
}

function redirect(string $where): never
{
    // 303: the browser asks with GET, and a reload does not send the form again.
    http_response_code(303);
    header("Location: $where");
    exit;
}

/** JSON for a program; for a person a page that says it, by way of a redirect. */
function answer_done(array $data, string $where): never
{
    if (wants_json()) {
        send_json(200, ['ok' => true] + $data);
    }
    redirect($where);
}

function answer_refusal(Refusal $refusal): never
{
    if ($refusal->retry_after !== null) {
        header('Retry-After: ' . $refusal->retry_after);
    }
    if (wants_json()) {
        send_json($refusal->status, ['ok' => false, 'error' => $refusal->getMessage(), 'code' => $refusal->short]);
    }
    show_refusal_page($refusal);
}

/** What a failure means for the person who asked. Details go to the error log only. */
function refusal_of(Throwable $failure): Refusal
{
    if ($failure instanceof Refusal) {
        return $failure;
    }
    error_log('ha-app: ' . get_class($failure) . ': ' . $failure->getMessage() . ' at ' . $failure->getFile() . ':' . $failure->getLine());
    if ($failure instanceof mysqli_sql_exception && database_is_away($failure)) {
        return database_refusal($failure);
    }
    return new Refusal(500, 'internal', 'Something went wrong on this node. It has been written to its log.');
}

/** Runs a page; nothing that it throws reaches the browser as it is. */
function run(callable $page): void
{
    send_headers();
    // A change that has begun is finished or undone, whether or not the browser still listens.
    ignore_user_abort(true);
    try {
        $page();
    } catch (Throwable $failure) {
        $refusal = refusal_of($failure);
        try {
            answer_refusal($refusal);
        } catch (Throwable $second) {
            error_log('ha-app: the error page failed: ' . $second->getMessage());
            http_response_code($refusal->status);
            header('Content-Type: text/plain; charset=utf-8');
            echo $refusal->getMessage(), "\n";
        }
    }
}
