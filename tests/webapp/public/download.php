<?php
// A file, always as a download and never as a page.
declare(strict_types=1);

require (getenv('HA_APP_LIB') ?: '/usr/local/share/ha-app') . '/app.php';

run(function () {
    require_method('GET');
    require_reader('files');
    send_file(positive($_GET['id'] ?? null));
});
