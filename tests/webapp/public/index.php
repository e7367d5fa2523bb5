<?php
// The first page is the users'.
declare(strict_types=1);

header('Location: users.php', true, 303);
