"""Run by the SDK's own Python: azure-iothub-provisioningserviceclient manages enrolments.

Argument: the connection string of the provisioning service. Prints what each step gave as one JSON object.
"""

import json
import sys
from typing import Any

from provisioningserviceclient import (
    BulkEnrollmentOperation,
    EnrollmentGroup,
    IndividualEnrollment,
    ProvisioningServiceClient,
    ProvisioningServiceError,
    QuerySpecification,
)
from provisioningserviceclient.models import AttestationMechanism, InitialTwin, SymmetricKeyAttestation


def refused(call: Any, *given: Any) -> str:
    try:
        call(*given)
    except ProvisioningServiceError as exc:
        return str(exc)
    return "not refused"


def main(text: str) -> dict[str, Any]:
    client = ProvisioningServiceClient.create_from_connection_string(text)
    keyed = AttestationMechanism(type="symmetricKey", symmetric_key=SymmetricKeyAttestation())
    twin = InitialTwin.create(tags={"line": 4}, desired_properties={"rate": 5})
    said: dict[str, Any] = {}
    made = client.create_or_update(
        IndividualEnrollment(registration_id="press-7", attestation=keyed, device_id="dev-7", initial_twin=twin)
    )
    said["made"] = [made.registration_id, made.device_id, made.provisioning_status, made.initial_twin.tags]
    read = client.get_individual_enrollment("press-7")
    said["hidden"] = read.attestation.symmetric_key.primary_key
    read.provisioning_status = "disabled"
    said["changed"] = client.create_or_update(read).provisioning_status
    said["stale"] = refused(client.create_or_update, read)
    keys = client.get_individual_enrollment_attestation_mechanism("press-7").symmetric_key
    said["key"] = keys.primary_key == made.attestation.symmetric_key.primary_key
    client.create_or_update(EnrollmentGroup(enrollment_group_id="line", attestation=keyed))
    said["group"] = client.get_enrollment_group("line").attestation.type
    many = [IndividualEnrollment(registration_id=f"b-{number}", attestation=keyed) for number in range(5)]
    said["bulk"] = client.run_bulk_operation(BulkEnrollmentOperation(mode="create", enrollments=many)).is_successful
    pages = client.create_individual_enrollment_query(QuerySpecification(query="SELECT * FROM enrollments"), 2)
    said["pages"] = [[row.registration_id for row in page] for page in pages]
    said["unregistered"] = refused(client.get_registration_state, "press-7")
    client.delete_individual_enrollment_by_param("press-7")
    client.delete_enrollment_group_by_param("line")
    said["gone"] = refused(client.get_individual_enrollment, "press-7")
    return said


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
